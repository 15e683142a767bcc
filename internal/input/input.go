// Package input reads what a request carries: a JSON object, a form or the parameters of a query.
//
// A reader such as [ReadJSON] returns an [Input]. The caller takes each field by its name and its
// rule, in the order in which the API describes them, and then checks Err:
//
//	password, name := in.Text("password", 8, 128), in.Text("name", 1, 100)
//	if err := in.Err(); err != nil {
//		return err
//	}
//
// A field that breaks its rule adds a [Fault], so a client learns of all its mistakes at once. The
// values are valid only if Err returns nil. A field has at most one fault, the first, so a caller
// may check a value further without knowing whether it is faulty already. No fault contains what
// the client sent, since any of it may be a password in the wrong place.
package input

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"jwt-auth-api/internal/strictjson"
)

// A Fault is one entry of a 422 response. It has the form of pydantic, a Python library, without
// the input.
type Fault struct {
	Type string         `json:"type"`
	Loc  []any          `json:"loc"`
	Msg  string         `json:"msg"`
	Ctx  map[string]any `json:"ctx,omitempty"`
}

// Faults is the error of invalid input.
type Faults []Fault

func (f Faults) Error() string { return fmt.Sprintf("invalid input: %v", []Fault(f)) }

// An Input holds the fields of a request and the faults found so far.
type Input struct {
	place      string // first element of every Loc, "body" or "query"
	values     map[string]strictjson.Value
	duplicates map[string]bool // names given more than once, with the zero Value
	faults     Faults
	err        error // of reading the body
}

func newInput(place string) *Input {
	return &Input{place: place, values: make(map[string]strictjson.Value), duplicates: make(map[string]bool)}
}

// Has reports whether the request has the field, with any value.
func (in *Input) Has(name string) bool {
	_, ok := in.values[name]
	return ok
}

// Err returns the error of reading the body, or the faults found as [Faults], or nil. A parameter
// that the caller did not take must not be given twice either. Its fault omits the name.
func (in *Input) Err() error {
	if in.err != nil {
		return in.err
	}
	faults := slices.Clone(in.faults)
	for name := range in.duplicates {
		if !in.faulty(name) {
			faults = append(faults, Fault{"value_error", []any{in.place}, duplicate, nil})
		}
	}
	if faults == nil {
		return nil
	}
	return faults
}

const duplicate = "Parameter given twice"

// Fault adds a fault of a field, unless the field has one. The name is the caller's, never one that
// only the client uses.
func (in *Input) Fault(typ, name, msg string, ctx map[string]any) {
	if !in.faulty(name) {
		in.faults = append(in.faults, Fault{typ, []any{in.place, name}, msg, ctx})
	}
}

func (in *Input) faulty(name string) bool {
	return slices.ContainsFunc(in.faults, func(f Fault) bool { return f.Loc[1] == name })
}

// check adds a fault unless ok.
func (in *Input) check(ok bool, typ, name, msg string, ctx map[string]any) {
	if !ok {
		in.Fault(typ, name, msg, ctx)
	}
}

// take returns the value of a field that must be given, and given once.
func (in *Input) take(name string) strictjson.Value {
	in.check(in.Has(name), "missing", name, "Field required", nil)
	in.check(!in.duplicates[name], "value_error", name, duplicate, nil)
	return in.values[name]
}

// Required returns the value of a field that must be a string.
func (in *Input) Required(name string) string {
	const msg = "Input should be a valid string"
	text, err := in.take(name).Str()
	in.check(err == nil, "string_type", name, msg, nil)
	in.check(utf8.ValidString(text), "string_unicode", name, msg+", unable to parse raw data as a unicode string", nil)
	return text
}

// Optional returns the value of a field that must be a string if it is given, or "".
func (in *Input) Optional(name string) string {
	if !in.Has(name) {
		return ""
	}
	return in.Required(name)
}

// Text returns the value of a required string of min to max code points.
func (in *Input) Text(name string, min, max int) string {
	text := in.Required(name)
	n := utf8.RuneCountInString(text)
	in.check(n >= min, "string_too_short", name, "String should have at least "+count(min, "character"),
		map[string]any{"min_length": min})
	in.check(n <= max, "string_too_long", name, "String should have at most "+count(max, "character"),
		map[string]any{"max_length": max})
	return text
}

// count returns n and the noun, in the plural unless n is 1.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprint(n, " ", noun)
}

// Pattern adds a fault if a field is given and is not the string want.
func (in *Input) Pattern(name, want string) {
	pattern, got := "^"+want+"$", in.Optional(name)
	in.check(got == want || !in.Has(name), "string_pattern_mismatch", name, "String should match pattern '"+pattern+"'",
		map[string]any{"pattern": pattern})
}

// Enum returns the value of a required string that is one of the values.
func (in *Input) Enum(name string, values ...string) string {
	text := in.Required(name)
	list := "'" + strings.Join(values[:len(values)-1], "', '") + "' or '" + values[len(values)-1] + "'"
	in.check(slices.Contains(values, text), "literal_error", name, "Input should be "+list,
		map[string]any{"expected": list})
	return text
}

// Int returns the value of a required query parameter, a decimal number from min to max. It returns
// min if the parameter is faulty.
func (in *Input) Int(name string, min, max int) int {
	n, err := strconv.Atoi(in.Required(name))
	in.check(err == nil, "int_parsing", name,
		"Input should be a valid integer, unable to parse string as an integer", nil)
	in.check(n >= min, "greater_than_equal", name, fmt.Sprint("Input should be greater than or equal to ", min),
		map[string]any{"ge": min})
	in.check(n <= max, "less_than_equal", name, fmt.Sprint("Input should be less than or equal to ", max),
		map[string]any{"le": max})
	if err != nil || n < min || n > max {
		return min
	}
	return n
}

// Bool returns the value of a required field that is true or false in JSON.
func (in *Input) Bool(name string) bool {
	v := in.take(name)
	isBool := v.Kind == strictjson.Literal && v.Text != "null"
	in.check(isBool, "bool_type", name, "Input should be a valid boolean", nil)
	return isBool && v.Text == "true"
}

// Tokens returns the value of a required field that is a list of scope tokens in JSON (RFC 6749
// section 3.3): at most max of them, none twice, of at most maxLen characters each.
func (in *Input) Tokens(name string, max, maxLen int) []string {
	v := in.take(name)
	in.check(v.Kind == strictjson.Array, "list_type", name, "Input should be a valid list", nil)
	var elements []any
	json.Unmarshal([]byte(v.Text), &elements) // leaves nil for a number out of range
	in.check(len(elements) <= max, "too_long", name, "List should have at most "+count(max, "item"),
		map[string]any{"max_length": max})
	if in.faulty(name) {
		return nil
	}
	tokens := []string{}
	for i, element := range elements {
		fault := func(typ, msg string) {
			in.faults = append(in.faults, Fault{typ, []any{in.place, name, i}, msg, nil})
		}
		token, ok := element.(string)
		switch {
		case !ok:
			fault("string_type", "Input should be a valid string")
		case !isToken(token, maxLen):
			fault("value_error", "Input should be a scope token of at most "+count(maxLen, "character"))
		case slices.Contains(tokens, token):
			fault("value_error", "Scope token given twice")
		}
		tokens = append(tokens, token)
	}
	return tokens
}

// isToken reports whether text is a scope-token (RFC 6749 section 3.3) of at most maxLen
// characters.
func isToken(text string, maxLen int) bool {
	isOther := func(c rune) bool { return c < '!' || c > '~' || c == '"' || c == '\\' }
	return text != "" && len(text) <= maxLen && !strings.ContainsFunc(text, isOther)
}
