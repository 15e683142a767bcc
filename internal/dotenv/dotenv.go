// Package dotenv parses the variables of one program in a .env file, which others may share.
//
// A line is NAME=value, with or without export before it. A value is bare or in one pair of
// single or double quotes, without escapes or expansion. A comment begins with a # at the start of
// a line, after white space or after quotes. No error contains a value, which may be a secret.
package dotenv

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Var is one assignment.
type Var struct {
	Line        int
	Name, Value string // the name in upper case
}

var export = regexp.MustCompile(`^\s*export\s`)
var assignment = regexp.MustCompile(`^(\w+)\s*=(.*)$`)
var reference = regexp.MustCompile(`\$\{.+\}|\$\(.+\)|^\$[A-Za-z_]\w*$`)

// Parse returns the variables in text whose name begins with prefix, in any case, and ignores all
// other lines. Its error joins one for each invalid line. It returns those of the valid lines too.
func Parse(text, prefix string) ([]Var, error) {
	if !utf8.ValidString(text) || strings.Contains(text, "\x00") { // UTF-16, for example
		return nil, errors.New(".env: not UTF-8 text: save the file as UTF-8")
	}
	var vars []Var
	var errs []error
	for i, line := range strings.Split(strings.TrimPrefix(text, "\uFEFF"), "\n") {
		line = strings.TrimSpace(export.ReplaceAllString(line, ""))
		if line == "" || line[0] == '#' || !strings.HasPrefix(strings.ToUpper(line), strings.ToUpper(prefix)) {
			continue
		}
		name, value, err := parseLine(line)
		if slices.ContainsFunc(vars, func(v Var) bool { return v.Name == name }) {
			err = fmt.Errorf("%s: set twice", name)
		}
		if err == nil {
			vars = append(vars, Var{i + 1, name, value})
		} else {
			errs = append(errs, fmt.Errorf(".env line %d: %w", i+1, err))
		}
	}
	return vars, errors.Join(errs...)
}

func parseLine(line string) (name, value string, err error) {
	match := assignment.FindStringSubmatch(line)
	if match == nil {
		return "", "", errors.New("want NAME=value")
	}
	name = strings.ToUpper(match[1])
	value, ok := unquote(match[2])
	if !ok {
		return "", "", fmt.Errorf("%s: want the value in one pair of quotes, or in none", name)
	}
	if reference.MatchString(value) {
		return "", "", fmt.Errorf("%s: ${...}, $(...) and $NAME are not expanded; write the value itself", name)
	}
	return name, value, nil
}

// unquote returns a value without its quotes and the comment after it, or false if a quote has no
// partner or is followed by more than a comment.
func unquote(value string) (string, bool) {
	trimmed := strings.TrimSpace(value)
	if trimmed == "" || trimmed[0] != '"' && trimmed[0] != '\'' {
		value, _, _ = strings.Cut(value, " #")
		value, _, _ = strings.Cut(value, "\t#")
		return strings.TrimSpace(value), true
	}
	value, rest, closed := strings.Cut(trimmed[1:], trimmed[:1])
	rest = strings.TrimSpace(rest)
	return value, closed && (rest == "" || rest[0] == '#')
}
