package input

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"jwt-auth-api/internal/testfile"
)

// A testCase is a row of a file in testdata.
type testCase struct {
	Name        string
	Reader      string // json, optional, form, any or query
	ContentType string
	Rule        string // rule for field a, with its bounds
	Input       string
	Want        any // value of field a, list of faults, or error
}

// check compares a value or an error with what the row wants, as JSON.
func (row testCase) check(t *testing.T, value any, err error) {
	t.Helper()
	if faults, ok := err.(Faults); ok {
		value = faults
	} else if err != nil {
		value = map[string]string{"error": err.Error()}
	}
	var got any
	encoded, err := json.Marshal(value)
	if err := errors.Join(err, json.Unmarshal(encoded, &got)); err != nil {
		t.Fatal(err)
	}
	if want, _ := json.Marshal(row.Want); !reflect.DeepEqual(got, row.Want) {
		t.Errorf("%s: got %s, want %s", row.Name, encoded, want)
	}
}

// request returns a request whose query string no reader of a body may look at.
func request(contentType string, body io.Reader) *http.Request {
	r := httptest.NewRequest("POST", "/?a=query", body)
	r.Header.Set("Content-Type", contentType)
	return r
}

var readers = map[string]func(*http.Request) *Input{
	"json": ReadJSON, "optional": ReadOptionalJSON, "form": ReadForm, "any": Read,
}

// TestRead reads requests and takes field a, a string.
func TestRead(t *testing.T) {
	for _, row := range testfile.Read[[]testCase](t, "requests.json") {
		in := Query(row.Input, "a", "b")
		if row.Reader != "query" {
			in = readers[row.Reader](request(row.ContentType, strings.NewReader(row.Input)))
		}
		row.check(t, in.Required("a"), in.Err())
	}
}

// TestReadFails reads bodies that end in an error.
func TestReadFails(t *testing.T) {
	tooLate := fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
	tooLarge := http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("{}")), 1)
	for _, row := range []struct {
		name   string
		body   io.Reader
		broken bool
		want   error
	}{
		{"a body that is too large", tooLarge, false, &http.MaxBytesError{Limit: 1}},
		{"a body that is too late", iotest.ErrReader(tooLate), false, os.ErrDeadlineExceeded},
		{"a body that breaks off", iotest.ErrReader(io.ErrUnexpectedEOF), true, io.ErrUnexpectedEOF},
	} {
		for name, reader := range readers {
			in := reader(request("application/json", row.body))
			in.Required("a") // adds a fault, which the error hides
			err := in.Err()
			large, _ := errors.AsType[*http.MaxBytesError](err)
			same := errors.Is(err, row.want) || reflect.DeepEqual(error(large), row.want)
			if !same || errors.Is(err, ErrBroken) != row.broken {
				t.Errorf("%s, %s: got %v, want %v", row.name, name, err, row.want)
			}
		}
	}
}

// rules maps the rules of rules.json to the methods of an Input.
var rules = map[string]func(in *Input, min, max int) any{
	"required": func(in *Input, _, _ int) any { return in.Required("a") },
	"optional": func(in *Input, _, _ int) any { return in.Optional("a") },
	"text":     func(in *Input, min, max int) any { return in.Text("a", min, max) },
	"pattern":  func(in *Input, _, _ int) any { in.Pattern("a", "password"); return nil },
	"int":      func(in *Input, min, max int) any { return in.Int("a", min, max) },
	"enum":     func(in *Input, _, _ int) any { return in.Enum("a", "local", "others", "global") },
	"bool":     func(in *Input, _, _ int) any { return in.Bool("a") },
	"tokens":   func(in *Input, max, maxLen int) any { return in.Tokens("a", max, maxLen) },
}

// TestRules takes field a of a JSON object, or of a query for int.
func TestRules(t *testing.T) {
	for _, row := range testfile.Read[[]testCase](t, "rules.json") {
		var rule string
		var lo, hi int
		fmt.Sscan(row.Rule, &rule, &lo, &hi)
		in := Query(row.Input, "a")
		if rule != "int" {
			in = ReadJSON(request("application/json", strings.NewReader(row.Input)))
		}
		value := rules[rule](in, lo, hi)
		row.check(t, value, in.Err())
		if rule == "int" && in.Err() != nil && value != lo {
			t.Errorf("%s: got %v next to a fault, want %d", row.Name, value, lo)
		}
	}
}

// TestFaults takes several fields, one of them twice, and adds faults of a caller's own.
func TestFaults(t *testing.T) {
	in := ReadForm(request(urlencoded, strings.NewReader("c=1&x=1&x=2")))
	for name, want := range map[string]bool{"a": false, "b": false, "c": true, "x": true} {
		if got := in.Has(name); got != want {
			t.Errorf("Has(%q): got %t, want %t", name, got, want)
		}
	}
	in.Pattern("b", "1")
	in.Required("b")
	in.Fault("value_error", "b", "b is wrong", nil)
	in.Fault("value_error", "a", "a is wrong", map[string]any{"reason": "a"})
	in.Required("a")
	before := in.Err()
	in.Fault("value_error", "c", "c is wrong", nil)
	const (
		b = "{missing [body b] Field required map[]} "
		a = "{value_error [body a] a is wrong map[reason:a]} "
		c = "{value_error [body c] c is wrong map[]} "
		x = "{value_error [body] Parameter given twice map[]}"
	)
	for _, row := range []struct {
		name string
		err  error
		want string
	}{
		{"the second time", in.Err(), b + a + c + x},
		{"the first time, read later", before, b + a + x},
	} {
		if want := "invalid input: [" + row.want + "]"; fmt.Sprint(row.err) != want {
			t.Errorf("%s: got %v, want %s", row.name, row.err, want)
		}
	}
}

func TestBoundary(t *testing.T) {
	for _, row := range testfile.Read[[]testCase](t, "boundaries.json") {
		row.check(t, parseBoundary(row.Input), nil)
	}
}

// writable reports whether mime/multipart writes the boundary.
func writable(boundary string) bool {
	return multipart.NewWriter(io.Discard).SetBoundary(boundary) == nil
}

// FuzzBoundary finds boundaries. Where package mime parses the header, the two agree, and
// mime/multipart decides which boundaries are valid.
func FuzzBoundary(f *testing.F) {
	for _, row := range testfile.Read[[]testCase](f, "boundaries.json") {
		f.Add(row.Input)
	}
	f.Fuzz(func(t *testing.T, contentType string) {
		got := parseBoundary(contentType)
		if got != "" && !writable(got) {
			t.Errorf("%q: got %q, want a valid boundary or none", contentType, got)
		}
		_, params, err := mime.ParseMediaType(contentType)
		want := params["boundary"]
		if !writable(want) {
			want = ""
		}
		if err == nil && got != want {
			t.Errorf("%q: got %q, want %q", contentType, got, want)
		}
	})
}

// FuzzMultipart reads any body, and then a form that mime/multipart wrote, whose value must come
// back.
func FuzzMultipart(f *testing.F) {
	f.Add("x", "1")
	f.Add("a/b:c=?", "1\r\n--a/b:c=")
	f.Add("'()+_,-./:=?", "\n\xff")
	f.Add("x", "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n")
	f.Fuzz(func(t *testing.T, boundary, text string) {
		in := newInput("body")
		if err := in.addMultipart(text, "multipart/form-data; boundary=x"); err != nil && err != ErrMultipart {
			t.Errorf("%q: got %v, want %v or nil", text, err, ErrMultipart)
		}
		for name, v := range in.values {
			if name == "" || !strings.Contains(text, v.Text) {
				t.Errorf("%q: got %q=%q, want a name and a part of the body", text, name, v.Text)
			}
		}
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		if w.SetBoundary(boundary) != nil || strings.Contains(boundary, " ") || strings.Contains(text, "--"+boundary) {
			return
		}
		if err := errors.Join(w.WriteField("a", text), w.Close()); err != nil {
			t.Fatal(err)
		}
		in = newInput("body")
		err := in.addMultipart(body.String(), "multipart/form-data; boundary="+boundary+"; charset=utf-8")
		if got := in.values["a"].Text; err != nil || got != text {
			t.Errorf("%q: got %q and %v, want %q", boundary, got, err, text)
		}
	})
}

// FuzzURLEncoded reads a form and a query. Where net/url parses the text, they agree with it.
func FuzzURLEncoded(f *testing.F) {
	for _, row := range testfile.Read[[]testCase](f, "requests.json") {
		f.Add(row.Input)
	}
	f.Add("=&&;=%zz&+=%2B&a=%ff")
	f.Fuzz(func(t *testing.T, text string) {
		want, err := url.ParseQuery(text)
		if err != nil {
			want = nil
		}
		in := newInput("body")
		in.addURLEncoded(text, func(string) bool { return true })
		if len(in.values) > strings.Count(text, "&")+1 || err == nil && len(in.values) != len(want) {
			t.Errorf("%q: got %d parameters, want %d", text, len(in.values), len(want))
		}
		for name, values := range want {
			query := Query(text, name)
			got := query.Required(name)
			if in.values[name] != query.values[name] || in.duplicates[name] != (len(values) > 1) {
				t.Errorf("%q: got %v in a form and %v in a query, want them equal", text, in.values[name], query.values[name])
			}
			valid := len(values) == 1 && utf8.ValidString(values[0])
			if valid != (query.Err() == nil) || valid && got != values[0] {
				t.Errorf("%q: got %q=%q and %v, want %q", text, name, got, query.Err(), values)
			}
		}
	})
}
