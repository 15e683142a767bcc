// Package strictjson parses JSON objects that have only one reading.
//
// Where two parsers read a text differently, one may check a value and the other use another.
// [encoding/json] ignores the case of names, takes the last of two equal names, reads null as no
// value, and replaces invalid UTF-8 and lone surrogates by U+FFFD. Here names match exactly, null
// is a value, and the rest are errors.
package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Kind is the kind of a JSON value.
type Kind byte

const (
	String  Kind = iota + 1 // decoded
	Number                  // as written
	Literal                 // true, false or null
	Object                  // as written
	Array                   // as written
)

// A Value is one JSON value. Text is decoded for a string, and as written for any other kind.
type Value struct {
	Kind Kind
	Text string
}

// Str returns the value of a string.
func (v Value) Str() (string, error) {
	if v.Kind != String {
		return "", errors.New("not a string")
	}
	return v.Text, nil
}

// Float returns the value of a number that a float64 can hold.
func (v Value) Float() (float64, error) {
	if v.Kind != Number {
		return 0, errors.New("not a number")
	}
	if n, err := strconv.Atoi(v.Text); err == nil { // most numbers
		return float64(n), nil
	}
	f, err := strconv.ParseFloat(v.Text, 64)
	if err != nil {
		return 0, errors.New("number out of range")
	}
	return f, nil
}

// Strings returns the elements of an array of strings.
func (v Value) Strings() ([]string, error) {
	if v.Kind != Array {
		return nil, errors.New("not a list")
	}
	list := []string{}
	p := parser{src: v.Text}
	_, err := p.value(0, func(_ string, element Value) error {
		s, err := element.Str()
		list = append(list, s)
		return err
	})
	return list, err
}

// A SyntaxError reports why a text is not JSON or has more than one reading.
type SyntaxError struct {
	Offset int // in code points
	Reason string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s at offset %d", e.Reason, e.Offset) }

// ErrNotObject reports a JSON text that is valid but not an object.
var ErrNotObject = errors.New("not a JSON object")

// maxDepth bounds how deep values nest (RFC 8259 section 9), and with it the use of the stack.
const maxDepth = 1000

// ParseObject parses a JSON text that is one object and calls member for each member in order. It
// stops at the first error: a [*SyntaxError], also for equal names in an object at any depth,
// [ErrNotObject], or what member returned. The caller must then discard the members received.
func ParseObject(src string, member func(name string, v Value) error) error {
	p := parser{src: src}
	// RFC 8259 section 8.1 requires UTF-8. In UTF-16 and UTF-32, one of the first two bytes is 0.
	if !utf8.ValidString(src) || strings.Contains(src[:min(2, len(src))], "\x00") {
		p.pos = strings.IndexByte(strings.ToValidUTF8(src, "\x00"), 0)
		return p.fail("Invalid UTF-8")
	}
	var kindErr error
	if p.next() != '{' {
		kindErr, member = ErrNotObject, nil
	}
	if _, err := p.value(0, member); err != nil {
		return err
	}
	if p.next(); p.pos < len(src) {
		return p.fail("data after the value")
	}
	return kindErr
}

type parser struct {
	src string
	pos int // in bytes
}

func (p *parser) fail(reason string) error {
	if p.pos == len(p.src) {
		reason = "unexpected end"
	}
	return &SyntaxError{utf8.RuneCountInString(p.src[:p.pos]), reason}
}

// next skips white space and returns the byte at the new position, or 0 at the end.
func (p *parser) next() byte {
	for ; p.pos < len(p.src); p.pos++ {
		if c := p.src[p.pos]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// value parses a value within depth others and calls item, unless nil, for each of its members or
// elements. The name of an element is empty.
func (p *parser) value(depth int, item func(name string, v Value) error) (v Value, err error) {
	c := p.next()
	start := p.pos
	switch c {
	case '"':
		v.Text, err = p.str()
		return Value{String, v.Text}, err
	case '{':
		v.Kind, err = Object, p.container(depth+1, '}', item)
	case '[':
		v.Kind, err = Array, p.container(depth+1, ']', item)
	case 't', 'f', 'n':
		v.Kind, err = Literal, p.scalar()
	default:
		v.Kind, err = Number, p.scalar()
	}
	v.Text = p.src[start:p.pos]
	return v, err
}

// container parses an object or an array up to the bracket end.
func (p *parser) container(depth int, end byte, item func(name string, v Value) error) (err error) {
	if depth > maxDepth {
		return p.fail("nested too deep")
	}
	p.pos++
	names := make([]string, 0, 10) // sorted; more than 10 take memory
	for c := p.next(); c != end; {
		name, v := "", Value{}
		if end == '}' {
			name, err = p.name()
			i, found := slices.BinarySearch(names, name)
			if err == nil && found {
				err = p.fail("duplicate name")
			}
			names = slices.Insert(names, i, name)
		}
		if err == nil {
			v, err = p.value(depth, nil)
		}
		if err == nil && item != nil {
			err = item(name, v)
		}
		if err != nil {
			return err
		}
		if c = p.next(); c == ',' {
			p.pos++
		} else if c != end {
			return p.fail("unexpected character")
		}
	}
	p.pos++
	return nil
}

// name parses the name of a member, and the colon after it.
func (p *parser) name() (string, error) {
	if p.next() != '"' {
		return "", p.fail("Expecting property name enclosed in double quotes")
	}
	name, err := p.str()
	switch {
	case err != nil:
		return "", err
	case p.next() != ':':
		return "", p.fail("unexpected character")
	}
	p.pos++
	return name, nil
}

// str parses a string. Without escapes, its value is a substring of the source.
func (p *parser) str() (string, error) {
	text, end := p.src[p.pos+1:], 0
	for i, c := range []byte(text) {
		if c == '"' {
			p.pos += i + 2
			return text[:i], nil
		}
		if c == '\\' || c < ' ' {
			break
		}
	}
	for ; end < len(text) && text[end] >= ' '; end++ {
		switch text[end] {
		case '\\':
			end++ // an escaped quote does not end the string
		case '"':
			return p.unquote(p.pos + end + 2)
		}
	}
	p.pos = min(p.pos+end+1, len(p.src))
	return "", p.fail("control character in string")
}

// unquote decodes a string that has escapes and ends before end. [json.Unmarshal] replaces each
// lone surrogate by U+FFFD, so a result with more of these than the source had a lone surrogate.
func (p *parser) unquote(end int) (text string, err error) {
	literal := p.src[p.pos:end]
	if json.Unmarshal([]byte(literal), &text) != nil {
		return "", p.fail("invalid escape")
	}
	escapes := strings.ToLower(strings.ReplaceAll(literal, `\\`, "")) // each \ left begins an escape
	if strings.Count(text, "\uFFFD") > strings.Count(literal, "\uFFFD")+strings.Count(escapes, `\ufffd`) {
		return "", p.fail("lone surrogate")
	}
	p.pos = end
	return text, nil
}

// scalar parses a number, true, false or null.
func (p *parser) scalar() error {
	const delimiters = ",]} \t\r\n"
	rest := p.src[p.pos:]
	end := 0
	for end < len(rest) && '0' <= rest[end] && rest[end] <= '9' {
		end++
	}
	if isWhole := end > 0 && rest[0] != '0' && end < len(rest) && strings.IndexByte(delimiters, rest[end]) >= 0; !isWhole {
		if end = strings.IndexAny(rest, delimiters); end < 0 {
			end = len(rest)
		}
		if !json.Valid([]byte(rest[:end])) {
			return p.fail("unexpected character")
		}
	}
	p.pos += end
	return nil
}
