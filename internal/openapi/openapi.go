// Package openapi checks HTTP responses against an OpenAPI 3.1 description of their API.
//
// It is test support, and understands what a small JSON API needs: path templates, references
// within the file, response headers, JSON bodies, and some keywords of JSON Schema 2020-12. A
// checker that skips the others accepts too much, so [Description.Sound] reports them.
package openapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Description is an OpenAPI description as a JSON value.
type Description map[string]any

// Load reads the description in file.
func Load(file string) (d Description, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	return d, err
}

// Operations returns the described operations, such as "get /me", sorted.
func (d Description) Operations() (operations []string) {
	for path, item := range object(d["paths"]) {
		for method := range object(item) {
			operations = append(operations, method+" "+path)
		}
	}
	slices.Sort(operations)
	return operations
}

// parameter matches a parameter of a path template.
var parameter = regexp.MustCompile(`\{\w+\}`)

// Check returns how a response to request, such as "GET /me?x=1", differs from its description.
// A request whose method and path are not described has no such difference.
func (d Description) Check(request string, status int, header http.Header, body string) error {
	request, _, _ = strings.Cut(request, "?")
	for _, operation := range d.Operations() { // "get /users/me" sorts before "get /users/{id}".
		method, template, _ := strings.Cut(operation, " ")
		pattern := strings.ToUpper(method) + " " + parameter.ReplaceAllString(template, "?*")
		if match, _ := path.Match(pattern, request); match {
			responses := d.find(d["paths"], template, method, "responses")
			response := d.find(responses, strconv.Itoa(status))
			if response == nil {
				return fmt.Errorf("status: got %d, want one of %q", status, keys(responses))
			}
			return errors.Join(d.checkHeader(response, header), d.checkBody(response, header, body))
		}
	}
	return nil
}

func (d Description) checkHeader(response any, got http.Header) (err error) {
	for _, name := range keys(d.find(response, "headers")) {
		header := d.find(response, "headers", name)
		var value any = strings.Join(got.Values(name), ", ")
		if d.find(header, "schema", "type") == "integer" {
			json.Unmarshal([]byte(got.Get(name)), &value) // A value that is not a number stays a string.
		}
		if len(got.Values(name)) > 0 {
			err = errors.Join(err, d.fits(name, d.find(header, "schema"), value))
		} else if d.find(header, "required") == true {
			err = errors.Join(err, fmt.Errorf("%s: got none, want one", name))
		}
	}
	return err
}

func (d Description) checkBody(response any, header http.Header, body string) error {
	content := d.find(response, "content")
	if content == nil && body == "" {
		return nil
	}
	media, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	schema := d.find(content, media, "schema")
	if schema == nil {
		return fmt.Errorf("Content-Type: got %q and the body %q, want one of %q", media, body, keys(content))
	}
	var value any
	if err := json.Unmarshal([]byte(body), &value); err != nil {
		return fmt.Errorf("body: got %q, want JSON: %w", body, err)
	}
	return d.fits("body", schema, value)
}

// An Example is an example of a request, and of the response whose example has the same name. A
// request without one is an example for the 204.
type Example struct {
	Request, Name, Media, Status string // such as "POST /login", "guess", "application/json", "401"
	Values                       map[string]any
	Response                     any
}

// Examples returns the examples of an operation, such as "post /login", by media type and name.
func (d Description) Examples(operation string) (examples []Example) {
	method, path, _ := strings.Cut(operation, " ")
	responses := d.find(d["paths"], path, method, "responses")
	content := d.find(d["paths"], path, method, "requestBody", "content")
	for _, media := range keys(content) {
		for _, name := range keys(d.find(content, media, "examples")) {
			ex := Example{Request: strings.ToUpper(method) + " " + path, Name: name, Media: media, Status: "204"}
			ex.Values = maps.Clone(object(d.find(content, media, "examples", name, "value")))
			for _, status := range keys(responses) {
				body := d.find(responses, status, "content", "application/json", "examples", name, "value")
				if body != nil {
					ex.Status, ex.Response = status, body
				}
			}
			examples = append(examples, ex)
		}
	}
	return examples
}

// schemaPath matches the places of the schemas in a description.
var schemaPath = regexp.MustCompile(`/(schema|items|additionalProperties|(schemas|properties|anyOf)/[^/]+)$`)

// known matches the keywords that fits checks, and those that are annotations.
var known = regexp.MustCompile(`^(\$ref|anyOf|type|enum|const|properties|required|additionalProperties|items|` +
	`uniqueItems|(min|max)(Length|imum|Items)|format|title|description|examples?|deprecated|default)$`)

// Sound returns an error for each reference to nothing, each unknown keyword of a schema, and each
// example that its schema rejects.
func (d Description) Sound() error { return d.sound("#", map[string]any(d)) }

func (d Description) sound(at string, value any) (err error) {
	members := object(value)
	if members["$ref"] != nil && d.find(value) == nil {
		err = fmt.Errorf("%s: got a reference to %v, which does not exist", at, members["$ref"])
	}
	if example, ok := members["example"]; ok {
		err = errors.Join(err, d.fits(at, members["schema"], example))
	}
	for _, name := range keys(members["examples"]) {
		err = errors.Join(err, d.fits(at+"/"+name, members["schema"], d.find(members["examples"], name, "value")))
	}
	for i, item := range array(value) {
		err = errors.Join(err, d.sound(fmt.Sprint(at, "/", i), item))
	}
	for _, name := range keys(value) {
		if schemaPath.MatchString(at) && !known.MatchString(name) {
			err = errors.Join(err, fmt.Errorf("%s: got keyword %s, want a known one", at, name))
		}
		err = errors.Join(err, d.sound(at+"/"+name, members[name]))
	}
	return err
}

// find returns the value below from at the given names, or nil. It follows references.
func (d Description) find(from any, names ...string) any {
	if ref, ok := object(from)["$ref"].(string); ok {
		from = d.find(map[string]any(d), strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	if len(names) == 0 {
		return from
	}
	return d.find(object(from)[names[0]], names[1:]...)
}

func array(value any) []any           { list, _ := value.([]any); return list }
func object(value any) map[string]any { members, _ := value.(map[string]any); return members }
func keys(value any) []string         { return slices.Sorted(maps.Keys(object(value))) }

// fits returns how value differs from schema. A missing schema accepts every value, and a keyword
// about one type accepts the values of the others.
func (d Description) fits(at string, schema, value any) (err error) {
	if schema == false {
		return fmt.Errorf("%s: got %v, want no such value", at, value)
	}
	keywords := object(schema)
	if keywords["$ref"] != nil {
		err = d.fits(at, d.find(schema), value)
	}
	for i, item := range array(value) {
		err = errors.Join(err, d.fits(fmt.Sprint(at, ".", i), keywords["items"], item))
	}
	for _, name := range keys(value) {
		property, listed := object(keywords["properties"])[name]
		if !listed {
			property = keywords["additionalProperties"]
		}
		err = errors.Join(err, d.fits(at+"."+name, property, object(value)[name]))
	}
	for _, keyword := range keys(schema) {
		if want := keywords[keyword]; !d.holds(keyword, want, value) {
			err = errors.Join(err, fmt.Errorf("%s: got %v, want %s %v", at, value, keyword, want))
		}
	}
	return err
}

// holds reports whether value is what a keyword wants of it as a whole.
func (d Description) holds(keyword string, want, value any) bool {
	kind, bound, size := measure(value)
	limit, _ := want.(float64)
	same := func(one any) bool { return reflect.DeepEqual(one, value) }
	switch keyword {
	case "type":
		return want == kind || want == "integer" && kind == "number" && size == math.Trunc(size)
	case "anyOf":
		return slices.ContainsFunc(array(want), func(one any) bool { return d.fits("", one, value) == nil })
	case "const":
		return same(want)
	case "enum":
		return slices.ContainsFunc(array(want), same)
	case "required":
		missing := func(name any) bool { return !slices.Contains(keys(value), name.(string)) }
		return kind != "object" || !slices.ContainsFunc(array(want), missing)
	case "uniqueItems":
		distinct := map[string]struct{}{}
		for _, item := range array(value) {
			distinct[fmt.Sprintf("%#v", item)] = struct{}{}
		}
		return want != true || len(distinct) == len(array(value))
	case "min" + bound:
		return size >= limit
	case "max" + bound:
		return size <= limit
	}
	return true
}

// measure returns the type of value, how the keywords that bound it end, and what they bound: the
// code points of a string, a number itself, the items of an array.
func measure(value any) (kind, bound string, size float64) {
	switch value := value.(type) {
	case string:
		return "string", "Length", float64(utf8.RuneCountInString(value))
	case float64:
		return "number", "imum", value
	case []any:
		return "array", "Items", float64(len(value))
	case map[string]any:
		return "object", "", 0
	case bool:
		return "boolean", "", 0
	}
	return "null", "", 0
}
