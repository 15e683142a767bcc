package dotenv

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"jwt-auth-api/internal/testfile"
)

type row struct{ Name, Input, Want string }

func TestParseAccepts(t *testing.T) {
	for _, row := range testfile.Read[[]row](t, "accepted.json") {
		for _, prefix := range []string{"APP_", "app_"} {
			vars, err := Parse(row.Input, prefix)
			var got []string
			for _, v := range vars {
				got = append(got, fmt.Sprintf("%d %s=%s", v.Line, v.Name, v.Value))
			}
			if err != nil || strings.Join(got, "|") != row.Want {
				t.Errorf("%s: got %q and %v, want %q", row.Name, got, err, row.Want)
			}
		}
	}
}

func TestParseRejects(t *testing.T) {
	for _, row := range append(testfile.Read[[]row](t, "rejected.json"),
		row{"Latin-1 in a comment", "# \xe9", ".env: not UTF-8 text: save the file as UTF-8"},
	) {
		if _, err := Parse(row.Input, "APP_"); err == nil || err.Error() != row.Want {
			t.Errorf("%s: got %v, want %s", row.Name, err, row.Want)
		}
	}
	const text = "APP_A\nAPP_B=x\nAPP_B=y\nAPP_C=z"
	got, err := Parse(text, "APP_")
	if want := []Var{{2, "APP_B", "x"}, {4, "APP_C", "z"}}; err == nil || !slices.Equal(got, want) {
		t.Errorf("valid lines among others: got %v and %v, want %v and an error", got, err, want)
	}
}

// TestParseWithoutPrefix checks that an empty prefix matches every name, and no comment or blank
// line.
func TestParseWithoutPrefix(t *testing.T) {
	got, err := Parse("# x\n\nA=x\nexport\n=y", "")
	if want := ".env line 4: want NAME=value\n.env line 5: want NAME=value"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if want := []Var{{3, "A", "x"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

var safeError = regexp.MustCompile(`^((^|\n)(\.env: not UTF-8 text: save the file as UTF-8|` +
	`\.env line \d+: (want NAME=value|APP_[A-Z0-9_]*: (set twice|want the value in one pair of quotes, or in none|` +
	`\$\{\.\.\.\}, \$\(\.\.\.\) and \$NAME are not expanded; write the value itself))))+$`)

// FuzzParse checks that name and value are those of the line, that a line of another program
// changes nothing, and that an error contains no text of the file except the names of variables.
func FuzzParse(f *testing.F) {
	for _, row := range slices.Concat(testfile.Read[[]row](f, "rejected.json"), testfile.Read[[]row](f, "accepted.json")) {
		f.Add(row.Input)
	}
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := Parse(text, "APP_")
		lines := strings.Split(text, "\n")
		for _, v := range vars {
			line := lines[v.Line-1]
			name, value, _ := strings.Cut(line, "=")
			if !strings.HasPrefix(v.Name, "APP_") || !strings.Contains(strings.ToUpper(name), v.Name) || !strings.Contains(value, v.Value) {
				t.Errorf("%q: got %+v, want the name and the value of line %q", text, v, line)
			}
		}
		if again, againErr := Parse(text+"\nOTHER='", "APP_"); !slices.Equal(again, vars) || fmt.Sprint(againErr) != fmt.Sprint(err) {
			t.Errorf("%q and a line of another program: got %v and %v, want %v and %v", text, again, againErr, vars, err)
		}
		if err != nil && !safeError.MatchString(err.Error()) {
			t.Errorf("%q: got %v, want no text of the file except names", text, err)
		}
	})
}
