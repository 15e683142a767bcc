package settings

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// load loads the settings APP_NAME (Aa), APP_SECRET, APP_NONE (an empty value is a value) and
// APP_SWITCH with a .env file. It returns what they are set to.
func load(t *testing.T, dotenv string, environ ...string) (got, warnings []string, err error) {
	t.Helper()
	t.Chdir(t.TempDir())
	if dotenv != "" {
		if err := os.WriteFile(".env", []byte(dotenv), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store := func(text string) error {
		got = append(got, text)
		if text == "bad" {
			return fmt.Errorf("must not be bad")
		}
		return nil
	}
	var on bool
	warnings, err = Load(environ, "APP_", []Setting{
		{Name: "APP_NAME", Default: "Aa", Parse: store},
		{Name: "APP_SECRET", Default: "Bb", Parse: store, Secret: true},
		{Name: "APP_NONE", Default: "Cc", Parse: store, AllowEmpty: true},
		{Name: "APP_SWITCH", Default: "off", Parse: Switch(&on)},
	})
	return append(got, fmt.Sprint(on)), warnings, err
}

func TestLoad(t *testing.T) {
	for _, row := range []struct {
		name, dotenv, environ, want string
	}{
		{"defaults", "", "", "Aa Bb Cc false"},
		{"the environment", "", "APP_NAME=x,APP_SECRET=y,APP_NONE=z,APP_SWITCH=on", "x y z true"},
		{"names in any case", "app_secret=y", "app_name=x,App_Switch=on", "x y Cc true"},
		{"two spellings of a name, of which the last counts", "", "APP_NAME=x,app_name=y", "y Bb Cc false"},
		{"the environment before .env", "APP_NAME=y\nAPP_NONE=z", "app_name=x", "x Bb z false"},
		{"empty values", "", "APP_NAME=,APP_SECRET=,APP_NONE=,APP_SWITCH=", "Aa Bb  false"},
		{"a secret in the environment before its file", "APP_SECRET_FILE=none", "APP_SECRET=y", "Aa y Cc false"},
		{"an empty value over .env", "APP_NAME=y", "APP_NAME=", "Aa Bb Cc false"},
		{"white space, not around a secret", "", "APP_NAME= x\r,APP_SECRET= y ,APP_NONE= ,APP_SWITCH=on ", "x  y   true"},
		{"an equals sign in a value", "", "APP_NAME=a=b", "a=b Bb Cc false"},
		{"variables of other programs", "POSTGRES_PASSWORD=x", "NAME=x,XAPP_NAME=y", "Aa Bb Cc false"},
	} {
		got, _, err := load(t, row.dotenv, strings.Split(row.environ, ",")...)
		if err != nil || strings.Join(got, " ") != row.want {
			t.Errorf("%s: got %q and %v, want %q", row.name, got, err, row.want)
		}
	}
}

func TestLoadFaults(t *testing.T) {
	dir := t.TempDir()
	latin1 := filepath.Join(dir, "latin1")
	os.WriteFile(latin1, []byte("\xe9"), 0o600)
	nul := filepath.Join(dir, "nul")
	os.WriteFile(nul, []byte("y\x00"), 0o600)
	for _, row := range []struct {
		name, dotenv, environ, want string
	}{
		{"all faults at once", "APP_NAME x\nAPP_NAM=x", "APP_NAME=bad,APP_SECRET=bad,APP_SWITCH=On",
			".env line 1: want NAME=value\n.env line 2: unknown setting APP_NAM\n" +
				"APP_NAME: must not be bad\nAPP_SECRET: must not be bad\nAPP_SWITCH: must be on or off"},
		{"a file for a setting that is not secret", "APP_NAME_FILE=x", "", ".env line 1: unknown setting APP_NAME_FILE"},
		{"a secret and its file", "", "APP_SECRET=x,APP_SECRET_FILE=y", "APP_SECRET: set together with APP_SECRET_FILE"},
		{"a missing file", "", "APP_SECRET_FILE=hunter2", "APP_SECRET: file: no such file or directory"},
		{"a file in Latin-1", "", "APP_SECRET_FILE=" + latin1, "APP_SECRET: file: must be UTF-8 text"},
		{"a file with NUL", "", "APP_SECRET_FILE=" + nul, "APP_SECRET: file: must be UTF-8 text"},
	} {
		if _, _, err := load(t, row.dotenv, strings.Split(row.environ, ",")...); fmt.Sprint(err) != row.want {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}

func TestLoadUnreadableDotenv(t *testing.T) {
	t.Chdir(t.TempDir())
	os.Mkdir(".env", 0o700)
	if _, err := Load(nil, "APP_", nil); fmt.Sprint(err) != ".env: is a directory" {
		t.Errorf("got %v, want .env: is a directory", err)
	}
}

func TestLoadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for _, row := range []struct{ name, content, want string }{
		{"white space and a byte order mark", " \uFEFF y \n\n", "y"},
		{"nothing", "\n", "Bb"},
	} {
		if err := os.WriteFile(path, []byte(row.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, warnings, err := load(t, "APP_SECRET=x", "APP_SECRET_FILE= "+path+" ")
		if err != nil || len(warnings) > 0 || got[1] != row.want {
			t.Errorf("%s: got %q, %q and %v, want %q", row.name, got, warnings, err, row.want)
		}
	}
}

func TestLoadWarnings(t *testing.T) {
	const looks = ": has quotation marks or white space at its ends, or refers to a variable"
	for _, row := range []struct {
		name, environ string
		want          []string
	}{
		{"an unknown setting", "app_nam=x", []string{"unknown setting app_nam"}},
		{"double quotes", `APP_SECRET="x"`, []string{"APP_SECRET" + looks}},
		{"single quotes", `APP_SECRET='x'`, []string{"APP_SECRET" + looks}},
		{"a space before", `APP_SECRET= x`, []string{"APP_SECRET" + looks}},
		{"a line break after", "APP_SECRET=x\n", []string{"APP_SECRET" + looks}},
		{"a reference", "APP_SECRET=${OTHER}", []string{"APP_SECRET" + looks}},
		{"a quotation mark, a space and signs within", `APP_SECRET=x" '$ {y`, nil},
		{"quotes around another setting", `APP_NAME="x"`, []string{"APP_NAME" + looks}},
	} {
		if _, warnings, err := load(t, "", row.environ); err != nil || !slices.Equal(warnings, row.want) {
			t.Errorf("%s: got %q and %v, want %q", row.name, warnings, err, row.want)
		}
	}
}

func TestParsers(t *testing.T) {
	var n int
	var text string
	var on bool
	var networks []netip.Prefix
	const (
		number  = "must be a whole number from 2 to 4"
		network = "must look like 10.0.0.0/8"
	)
	for _, row := range []struct {
		name   string
		parse  func(string) error
		stored any
		text   string
		want   string // the error, or what is stored
	}{
		{"the least number", Int(&n, 2, 4), &n, "2", "2"},
		{"the greatest number", Int(&n, 2, 4), &n, "4", "4"},
		{"a number below", Int(&n, 2, 4), &n, "1", number},
		{"a number above", Int(&n, 2, 4), &n, "5", number},
		{"a fraction", Int(&n, 2, 4), &n, "2.5", number},
		{"one of the values", OneOf(&text, "a", "b"), &text, "b", "b"},
		{"none of the values", OneOf(&text, "a", "b"), &text, "c", "must be a or b"},
		{"the longest text", Text(&text, 3), &text, "aé", "aé"},
		{"a longer text", Text(&text, 3), &text, "aéb", "must be UTF-8 of at most 3 bytes"},
		{"a text in Latin-1", Text(&text, 3), &text, "\xe9", "must be UTF-8 of at most 3 bytes"},
		{"on", Switch(&on), &on, "on", "true"},
		{"off", Switch(&on), &on, "off", "false"},
		{"neither on nor off", Switch(&on), &on, "yes", "must be on or off"},
		{"no networks", Networks(&networks), &networks, "", "[]"},
		{"three networks, one with host bits", Networks(&networks), &networks, "10.1.2.3/8, 192.0.2.1,2001:db8::/32",
			"[10.0.0.0/8 192.0.2.1/32 2001:db8::/32]"},
		{"a name", Networks(&networks), &networks, "proxy", "network 1: " + network},
		{"a zone", Networks(&networks), &networks, "fe80::1%eth0", "network 1: " + network},
		{"IPv4 in IPv6", Networks(&networks), &networks, "::1,::ffff:10.0.0.0/104", "network 2: " + network},
	} {
		got := fmt.Sprint(row.parse(row.text))
		if got == "<nil>" {
			got = fmt.Sprint(reflect.ValueOf(row.stored).Elem())
		}
		if got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}
