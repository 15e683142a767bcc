// Package testfile reads the files in testdata.
package testfile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"testing"
)

// Read decodes a JSON file of the package's testdata. A member that T lacks is an error.
func Read[T any](t testing.TB, name string) (v T) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := cmp.Or(err, decoder.Decode(&v)); err != nil {
		t.Fatalf("testdata/%s: %v", name, err)
	}
	return v
}
