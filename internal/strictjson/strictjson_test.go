package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"jwt-auth-api/internal/testfile"
)

type row struct{ Name, Input, Kind, Want string }

// unprintable holds texts that are not UTF-8 or too long for testdata/rejected.json.
var unprintable = []row{
	{Name: "a byte that UTF-8 does not have", Input: "{\"a\":\"é\xff\"}", Want: "Invalid UTF-8 at offset 7"},
	{Name: "a surrogate in UTF-8", Input: "\"\xed\xa0\x80\"", Want: "Invalid UTF-8 at offset 1"},
	{Name: "invalid UTF-8 after the replacement character", Input: "\"\uFFFD\xff\"", Want: "Invalid UTF-8 at offset 2"},
	{Name: "invalid UTF-8 after a syntax error", Input: "{bad\xff", Want: "Invalid UTF-8 at offset 4"},
	{Name: "1001 arrays", Input: strings.Repeat("[", 1001), Want: "nested too deep at offset 1000"},
	{Name: "1001 objects", Input: strings.Repeat(`{"a":`, 1000) + "{}", Want: "nested too deep at offset 5000"},
}

func TestParseObjectRejects(t *testing.T) {
	ignore := func(string, Value) error { return nil }
	for _, row := range append(testfile.Read[[]row](t, "rejected.json"), unprintable...) {
		if err := ParseObject(row.Input, ignore); err == nil || err.Error() != row.Want {
			t.Errorf("%s: got %v, want %s", row.Name, err, row.Want)
		}
	}
}

func TestParseObjectAccepts(t *testing.T) {
	kinds := map[string]Kind{"string": String, "number": Number, "literal": Literal, "object": Object, "array": Array}
	deep, wide := strings.Repeat("[", 999)+strings.Repeat("]", 999), "[[]"+strings.Repeat(",{},[]", 1000)+"]"
	for _, row := range append(testfile.Read[[]row](t, "accepted.json"),
		row{"1000 levels", `{"a":` + deep + `}`, "array", deep},
		row{"many values at one level", `{"a":` + wide + `}`, "array", wide},
	) {
		var got []string
		err := ParseObject(row.Input, func(name string, v Value) error {
			got = append(got, fmt.Sprint(name, v))
			return nil
		})
		want := []string{fmt.Sprint("a", Value{kinds[row.Kind], row.Want})}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q and %v, want %q", row.Name, got, err, want)
		}
	}
}

// TestMembers checks the order of many members, and that an error of the callback ends the parsing.
func TestMembers(t *testing.T) {
	var pairs, want, got []string
	for i := range 30 {
		want = append(want, fmt.Sprint("n", i))
		pairs = append(pairs, fmt.Sprintf(`"n%d":%d`, i, i))
	}
	object := "{" + strings.Join(pairs, ",") + "}"
	if err := ParseObject(object, func(name string, v Value) error {
		got = append(got, "n"+v.Text)
		return nil
	}); err != nil || !slices.Equal(got, want) {
		t.Errorf("30 members: got %q and %v, want %q", got, err, want)
	}
	stop, calls := errors.New("stop"), 0
	err := ParseObject(object+" x", func(name string, v Value) error {
		if calls++; name == "n2" {
			return stop
		}
		return nil
	})
	if err != stop || calls != 3 {
		t.Errorf("an error at the third member: got %v after %d calls, want stop after 3", err, calls)
	}
	if err := ParseObject(`[1]`, func(string, Value) error { return stop }); err != ErrNotObject {
		t.Errorf("an array: got %v, want ErrNotObject", err)
	}
}

func TestValues(t *testing.T) {
	str := func(v Value) (any, error) { return v.Str() }
	float := func(v Value) (any, error) { return v.Float() }
	list := func(v Value) (any, error) { return v.Strings() }
	for _, row := range []struct {
		name   string
		method func(Value) (any, error)
		value  Value
		want   string
	}{
		{"a string", str, Value{String, "b"}, `"b" <nil>`},
		{"null as a string", str, Value{Literal, "null"}, `"" not a string`},
		{"an integer", float, Value{Number, "-1795503214"}, `-1.795503214e+09 <nil>`},
		{"a fraction", float, Value{Number, "1.5e1"}, `15 <nil>`},
		{"an integer beyond 64 bits", float, Value{Number, "100000000000000000000"}, `1e+20 <nil>`},
		{"a number beyond a float64", float, Value{Number, "1e309"}, `0 number out of range`},
		{"a string as a number", float, Value{String, "1"}, `0 not a number`},
		{"no value as a number", float, Value{}, `0 not a number`},
		{"a list", list, Value{Array, `["a", "b,\n" ]`}, `[]string{"a", "b,\n"} <nil>`},
		{"an empty list", list, Value{Array, `[ ]`}, `[]string{} <nil>`},
		{"a list with a number", list, Value{Array, `["a",1]`}, `[]string{"a", ""} not a string`},
		{"a string as a list", list, Value{String, `["a"]`}, `[]string(nil) not a list`},
		{"null as a list", list, Value{Literal, `null`}, `[]string(nil) not a list`},
	} {
		got, err := row.method(row.value)
		if text := fmt.Sprintf("%#v %v", got, err); text != row.want {
			t.Errorf("%s: got %s, want %s", row.name, text, row.want)
		}
	}
}

// TestParseObjectAllocations parses the claims of a token.
func TestParseObjectAllocations(t *testing.T) {
	const claims = `{"sub":"8b1d7a2e-5c34-4f0e-9d5c-0e6d3b8f2a11","scopes":["me"],"type":"access",` +
		`"jti":"0f0e9d5c-5c34-4f0e-9d5c-0e6d3b8f2a11","iat":1795503214,"exp":1795504114,` +
		`"iss":"jwt-auth-api","sid":"1b1d7a2e-5c34-4f0e-9d5c-0e6d3b8f2a11"}`
	parse := func() {
		ParseObject(claims, func(_ string, v Value) error {
			if v.Kind == Number {
				v.Float()
			}
			return nil
		})
	}
	if n := testing.AllocsPerRun(100, parse); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// hasDuplicate reports whether an object in a valid text has two equal names. encoding/json keeps
// one of them, so what it encodes again has fewer tokens.
func hasDuplicate(text string) bool {
	var value any
	newDecoder(text).Decode(&value)
	encoded, _ := json.Marshal(value)
	return tokens(string(encoded)) < tokens(text)
}

// tokens returns the number of tokens in a valid text.
func tokens(text string) (n int) {
	decoder := newDecoder(text)
	for {
		if _, err := decoder.Token(); err != nil {
			return n
		}
		n++
	}
}

// newDecoder returns a decoder that accepts numbers out of range.
func newDecoder(text string) *json.Decoder {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	return decoder
}

// stricter maps each reason to reject a text that encoding/json accepts to a necessary condition.
var stricter = map[string]func(text string) bool{
	"duplicate name":  hasDuplicate,
	"nested too deep": func(text string) bool { return strings.Count(text, "[")+strings.Count(text, "{") > maxDepth },
	"Invalid UTF-8":   func(text string) bool { return !utf8.ValidString(text) },
	"lone surrogate":  hasLoneSurrogate,
}

var (
	pair      = regexp.MustCompile(`(?i)\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}`)
	surrogate = regexp.MustCompile(`(?i)\\ud[89a-f][0-9a-f]{2}`)
)

// hasLoneSurrogate reports whether a \u escape in a valid text is half of a surrogate pair.
func hasLoneSurrogate(text string) bool {
	text = strings.ReplaceAll(text, `\\`, "  ")
	return surrogate.MatchString(pair.ReplaceAllString(text, ""))
}

// FuzzParseObject compares with encoding/json: a text is accepted if encoding/json accepts it and
// no rule of stricter applies, and has the same members.
func FuzzParseObject(f *testing.F) {
	rows := slices.Concat(testfile.Read[[]row](f, "rejected.json"), testfile.Read[[]row](f, "accepted.json"), unprintable)
	for _, row := range rows {
		if len(row.Input) < 256 { // the fuzzer would spend its time on long seeds
			f.Add(row.Input)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := map[string]Value{}
		err := ParseObject(text, func(name string, v Value) error {
			got[name] = v
			return nil
		})
		if syntax, ok := errors.AsType[*SyntaxError](err); ok {
			rule := stricter[syntax.Reason]
			if json.Valid([]byte(text)) && (rule == nil || !rule(text)) {
				t.Errorf("%q: got %v, want it accepted", text, err)
			}
			if syntax.Offset < 0 || syntax.Offset > utf8.RuneCountInString(text) {
				t.Errorf("%q: got offset %d, want one in the text", text, syntax.Offset)
			}
			return
		}
		if !json.Valid([]byte(text)) || !utf8.ValidString(text) || hasDuplicate(text) || hasLoneSurrogate(text) {
			t.Errorf("%q: got %v, want a SyntaxError", text, err)
		}
		if err == nil {
			compareMembers(t, text, got)
		}
	})
}

// compareMembers compares the members of an object with those that encoding/json returns.
func compareMembers(t *testing.T, text string, got map[string]Value) {
	t.Helper()
	var want map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatalf("%q: got it accepted, want %v", text, err)
	}
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("%q: got names %q, want %q", text, g, w)
	}
	for name, v := range got {
		raw := string(want[name])
		if v.Kind == String {
			json.Unmarshal(want[name], &raw)
		}
		if v.Text != raw {
			t.Errorf("%q: %q: got %q, want %q", text, name, v.Text, raw)
		}
	}
}
