// Package settings loads the settings of a program from environment variables and a file .env.
//
// A program lists its settings, each with a function that parses the value:
//
//	var port int
//	warnings, err := settings.Load(os.Environ(), "APP_", []settings.Setting{
//		{Name: "APP_PORT", Default: "80", Parse: settings.Int(&port, 1, 65535)},
//	})
//
// A value comes from the environment, else from .env, else it is the default. Names match in any
// case. An empty value means the default. Load reports all errors together, none with a value.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"jwt-auth-api/internal/dotenv"
)

// A Setting is one variable. Unless it is secret, white space around its value is ignored.
type Setting struct {
	Name       string
	Default    string
	Parse      func(text string) error
	Secret     bool // may be in a file whose path is in the variable with _FILE appended to Name
	AllowEmpty bool // whether an empty value replaces the default
}

// Load parses the values of all settings. A variable that begins with prefix and is unknown is an
// error in .env and a warning in the environment. The error has one line for each.
func Load(environ []string, prefix string, all []Setting) (warnings []string, err error) {
	known := make(map[string]bool)
	for _, s := range all {
		known[s.Name] = true
		known[s.Name+"_FILE"] = s.Secret
	}
	file, errs := readDotenv(prefix, known)
	env := make(map[string]string)
	for _, pair := range environ {
		given, value, _ := strings.Cut(pair, "=")
		name := strings.ToUpper(given)
		switch {
		case known[name]:
			env[name] = value
		case strings.HasPrefix(name, prefix):
			warnings = append(warnings, "unknown setting "+given)
		}
	}
	for _, s := range all {
		text, err := s.value(env, file)
		if suspicious(text) {
			warnings = append(warnings, s.Name+": has quotation marks or white space at its ends, or refers to a variable")
		}
		if err == nil {
			err = s.Parse(text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
		}
	}
	return warnings, errors.Join(errs...)
}

// readDotenv returns the variables of .env, if there is one.
func readDotenv(prefix string, known map[string]bool) (values map[string]string, errs []error) {
	values = make(map[string]string)
	text, err := os.ReadFile(".env")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return values, []error{fmt.Errorf(".env: %w", errors.Unwrap(err))}
	}
	vars, err := dotenv.Parse(string(text), prefix)
	errs = append(errs, err)
	for _, v := range vars {
		if !known[v.Name] {
			errs = append(errs, fmt.Errorf(".env line %d: unknown setting %s", v.Line, v.Name))
		}
		values[v.Name] = v.Value
	}
	return values, errs
}

// value returns the value of s: from the environment if that has s or a path of its file, otherwise
// from .env, otherwise the default.
func (s Setting) value(env, file map[string]string) (string, error) {
	values := env
	if _, given := env[s.Name]; !given && env[s.Name+"_FILE"] == "" {
		values = file
	}
	text, given := values[s.Name]
	path := strings.TrimSpace(values[s.Name+"_FILE"])
	switch {
	case s.Secret && text != "" && path != "":
		return "", fmt.Errorf("set together with %s_FILE", s.Name)
	case s.Secret && path != "":
		content, err := os.ReadFile(path)
		if err != nil {
			// The error without the path, which may be a secret in the wrong variable.
			return "", fmt.Errorf("file: %w", errors.Unwrap(err))
		}
		if !utf8.Valid(content) || bytes.ContainsRune(content, 0) {
			return "", errors.New("file: must be UTF-8 text")
		}
		text = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(content)), "\uFEFF"))
	case !s.Secret:
		text = strings.TrimSpace(text)
	}
	if text == "" && !(given && s.AllowEmpty) {
		text = s.Default
	}
	return text, nil
}

// suspicious reports whether a value looks like one that a shell or a tool should have processed.
func suspicious(value string) bool {
	return value != strings.Trim(value, " \t\r\n\"'") || strings.Contains(value, "${")
}

// OneOf returns a parser that stores one of the values.
func OneOf(p *string, values ...string) func(string) error {
	return func(text string) error {
		*p = text
		if !slices.Contains(values, text) {
			return fmt.Errorf("must be %s", strings.Join(values, " or "))
		}
		return nil
	}
}

// Switch returns a parser that stores whether the value is on.
func Switch(p *bool) func(string) error {
	return func(text string) error {
		*p = text == "on"
		return OneOf(&text, "on", "off")(text)
	}
}

// Text returns a parser that stores a text of at most max bytes.
func Text(p *string, max int) func(string) error {
	return func(text string) error {
		if *p = text; len(text) > max || !utf8.ValidString(text) {
			return fmt.Errorf("must be UTF-8 of at most %d bytes", max)
		}
		return nil
	}
}

// Int returns a parser that stores a whole number from min to max.
func Int(p *int, min, max int) func(string) error {
	return func(text string) (err error) {
		if *p, err = strconv.Atoi(text); err != nil || *p < min || *p > max {
			return fmt.Errorf("must be a whole number from %d to %d", min, max)
		}
		return nil
	}
}

// List returns the items of a comma-separated list without the white space around them.
func List(text string) []string {
	if text == "" {
		return nil
	}
	items := strings.Split(text, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

// Networks returns a parser that stores a list of networks (CIDR) or IP addresses.
func Networks(p *[]netip.Prefix) func(string) error {
	return func(text string) error {
		for i, item := range List(text) {
			network, err := netip.ParsePrefix(item)
			if ip, ipErr := netip.ParseAddr(item); ipErr == nil && ip.Zone() == "" {
				network, err = netip.PrefixFrom(ip, ip.BitLen()), nil
			}
			if err != nil || network.Addr().Is4In6() {
				return fmt.Errorf("network %d: must look like 10.0.0.0/8", i+1)
			}
			*p = append(*p, network.Masked())
		}
		return nil
	}
}
