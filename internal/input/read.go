package input

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	"jwt-auth-api/internal/strictjson"
)

// A BodyError reports a body that cannot be read. Its text is for the client.
type BodyError string

func (e BodyError) Error() string { return string(e) }

// The errors of a body that cannot be read. A [*http.MaxBytesError] and
// [os.ErrDeadlineExceeded] are returned wrapped instead.
const (
	ErrBroken    BodyError = "There was an error parsing the body"
	ErrBoundary  BodyError = "Missing boundary in multipart."
	ErrMultipart BodyError = "Invalid multipart data."
)

// The media types of bodies, and what may precede JSON (RFC 8259 section 8.1).
const (
	jsonObject    = "application/json"
	urlencoded    = "application/x-www-form-urlencoded"
	multipartForm = "multipart/form-data"
	byteOrderMark = "\uFEFF"
)

// ReadJSON reads a body that is a JSON object with a Content-Type of JSON. Any other body makes Err
// return [Faults]. The caller limits the size of the body.
func ReadJSON(r *http.Request) *Input { return read(r, false, false) }

// ReadOptionalJSON reads a body as [ReadJSON] does. An empty body has no fields.
func ReadOptionalJSON(r *http.Request) *Input { return read(r, false, true) }

// ReadForm reads a body that is a form, or a JSON object as [ReadJSON] does. A body of another
// Content-Type has no fields. The query string is never read as a form, since URLs are logged.
func ReadForm(r *http.Request) *Input { return read(r, true, false) }

// Read reads a body as [ReadForm] does if its Content-Type is that of a form, else as [ReadJSON].
func Read(r *http.Request) *Input {
	media := mediaType(r)
	return read(r, media == urlencoded || media == multipartForm, false)
}

// Query reads the parameters of a query that have one of the names.
func Query(rawQuery string, names ...string) *Input {
	in := newInput("query")
	in.addURLEncoded(rawQuery, func(name string) bool { return slices.Contains(names, name) })
	return in
}

// read reads a body that is JSON, a form if formAllowed, or empty if optional.
func read(r *http.Request, formAllowed, optional bool) *Input {
	in, media := newInput("body"), mediaType(r)
	body, err := readBody(r)
	switch {
	case err != nil, body == "" && optional:
	case body == "" && (media == jsonObject || !formAllowed):
		err = Faults{{"missing", []any{"body"}, "Field required", nil}}
	case media == jsonObject:
		err = in.addJSON(body)
	case strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "{"): // JSON, as curl -d sends it
		err = notObject(map[string]any{"hint": "send the header Content-Type: application/json"})
	case !formAllowed:
		err = notObject(nil)
	case media == urlencoded:
		in.addURLEncoded(body, func(string) bool { return true })
	case media == multipartForm:
		err = in.addMultipart(body, r.Header.Get("Content-Type"))
	}
	if media != jsonObject {
		// RFC 6749 section 3.2: parameters without a value are "treated as if they were omitted".
		omitted := strictjson.Value{Kind: strictjson.String}
		maps.DeleteFunc(in.values, func(_ string, v strictjson.Value) bool { return v == omitted })
	}
	in.err = err
	return in
}

// readBody returns the body without a byte order mark.
func readBody(r *http.Request) (string, error) {
	body, err := io.ReadAll(r.Body)
	if _, large := errors.AsType[*http.MaxBytesError](err); large || errors.Is(err, os.ErrDeadlineExceeded) {
		return "", fmt.Errorf("body: %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return strings.TrimPrefix(string(body), byteOrderMark), nil
}

// mediaType returns the media type of the body in lower case and without parameters. Types with the
// suffix +json are JSON too (RFC 6839 section 3.1).
func mediaType(r *http.Request) string {
	media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	media = strings.ToLower(strings.TrimSpace(media))
	if strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json") {
		return jsonObject
	}
	return media
}

func notObject(ctx map[string]any) error {
	const msg = "Input should be a valid dictionary or object to extract fields from"
	return Faults{{"model_attributes_type", []any{"body"}, msg, ctx}}
}

// addJSON adds the members of a JSON object.
func (in *Input) addJSON(body string) error {
	err := strictjson.ParseObject(body, func(name string, v strictjson.Value) error {
		in.values[name] = v
		return nil
	})
	if syntax, ok := errors.AsType[*strictjson.SyntaxError](err); ok {
		ctx := map[string]any{"error": syntax.Reason}
		return Faults{{"json_invalid", []any{"body", syntax.Offset}, "JSON decode error", ctx}}
	}
	if err != nil {
		return notObject(nil)
	}
	return nil
}

// addParameter adds a parameter of a form or a query. RFC 6749 section 3.2: parameters "MUST NOT be
// included more than once".
func (in *Input) addParameter(name string, v strictjson.Value) {
	if in.Has(name) {
		in.duplicates[name] = true
		v = strictjson.Value{}
	}
	in.values[name] = v
}

// addURLEncoded adds the parameters of application/x-www-form-urlencoded whose names are wanted. It
// parses them as the URL Standard does (https://url.spec.whatwg.org/#urlencoded-parsing). That
// keeps a semicolon, and a percent sign that begins no escape, which [url.ParseQuery] rejects.
func (in *Input) addURLEncoded(text string, wanted func(name string) bool) {
	for pair := range strings.SplitSeq(text, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name = unescape(name); pair != "" && wanted(name) {
			in.addParameter(name, strictjson.Value{Kind: strictjson.String, Text: unescape(value)})
		}
	}
}

var escape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

func unescape(text string) string {
	return escape.ReplaceAllStringFunc(strings.ReplaceAll(text, "+", " "), func(match string) string {
		char, _ := hex.DecodeString(match[1:])
		return string(char)
	})
}

// addMultipart adds the parameters of multipart/form-data (RFC 7578).
func (in *Input) addMultipart(body, contentType string) error {
	boundary := parseBoundary(contentType)
	if boundary == "" {
		return ErrBoundary
	}
	parts := multipart.NewReader(strings.NewReader(body), boundary)
	for body != "" {
		part, err := parts.NextRawPart()
		if err == io.EOF && strings.Contains(body, "--"+boundary+"--") { // EOF is also a header that breaks off
			break
		}
		if err != nil {
			return ErrMultipart
		}
		content, err := io.ReadAll(part)
		disposition, params, _ := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil || disposition != "form-data" || params["name"] == "" {
			return ErrMultipart
		}
		v := strictjson.Value{Kind: strictjson.String, Text: string(content)}
		if _, isFile := params["filename"]; isFile {
			v = strictjson.Value{} // no string
		}
		in.addParameter(params["name"], v)
	}
	return nil
}

// boundaryChars are the characters of a boundary, besides the space (RFC 2046 section 5.1.1).
const boundaryChars = `0-9A-Za-z'()+_,./:=?-`

var (
	validBoundary    = regexp.MustCompile(`^[ ` + boundaryChars + `]{0,69}[` + boundaryChars + `]$`)
	unquotedBoundary = regexp.MustCompile(`^((?:[^"]|"(?:[^"\\]|\\.)*")*?;\s*(?i:boundary)=)` +
		`([` + boundaryChars + `]+)\s*(;|$)`)
)

// parseBoundary returns the boundary of a multipart Content-Type, or "" if it has no valid one.
// Some clients omit the quotes that a boundary such as a/b requires, so they are added.
func parseBoundary(contentType string) string {
	_, params, _ := mime.ParseMediaType(unquotedBoundary.ReplaceAllString(contentType, `$1"$2"$3`))
	return validBoundary.FindString(params["boundary"])
}
