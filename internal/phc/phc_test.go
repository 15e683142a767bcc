package phc

import (
	"testing"

	"jwt-auth-api/internal/testfile"
)

// A row is an encoded hash with the error of Parse, or "accepted".
type row struct{ Name, Input, Want string }

func TestParse(t *testing.T) {
	for _, row := range testfile.Read[[]row](t, "phc.json") {
		h, err := Parse(row.Input)
		got, want := "accepted", row.Input
		if err != nil {
			got, want = err.Error(), Hash{}.String()
		}
		if got != row.Want || h.String() != want {
			t.Errorf("%s: got %s and %s, want %s and %s", row.Name, got, h, row.Want, want)
		}
	}
}

// FuzzParse checks the bounds of what a hash costs, and that an accepted one formats to itself.
func FuzzParse(f *testing.F) {
	for _, row := range testfile.Read[[]row](f, "phc.json") {
		f.Add(row.Input)
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		h, err := Parse(encoded)
		if err != nil {
			return
		}
		p := uint32(h.Threads)
		if p < 1 || p > 16 || h.Time < 1 || h.Time > 10 || h.Memory < 8*p || h.Memory > 256<<10 ||
			len(h.Salt) < 8 || len(h.Salt) > 64 || len(h.Sum) < 16 || len(h.Sum) > 64 {
			t.Errorf("got %s accepted, want it within the bounds", h)
		}
		if h.String() != encoded {
			t.Errorf("got %s, want %s unchanged", h, encoded)
		}
	})
}
