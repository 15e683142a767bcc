package webscript

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Walkthrough runs the commands in the section Walkthrough of file against server.
func Walkthrough(t *testing.T, file string, server Server) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := script{TB: t, file: file, server: server, vars: map[string]string{}}
	s.walk(string(text))
}

var codeBlock = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

func (s *script) walk(text string) {
	_, section, _ := strings.Cut(text, "\n## Walkthrough\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := codeBlock.FindAllStringSubmatch(section, -1)
	s.must(len(blocks) > 0 && blocks[0][1] == "sh", "section Walkthrough: got %q, want an sh block first", blocks)
	for i, block := range blocks {
		if block[1] != "sh" {
			continue
		}
		s.line = 1 + strings.Count(text[:strings.Index(text, block[0])], "\n")
		got, want := "", ""
		for command := range strings.Lines(strings.ReplaceAll(block[2], "\\\n", " ")) {
			got += s.command(strings.TrimSpace(command))
		}
		for _, next := range blocks[i+1:] {
			if next[1] == "sh" {
				break
			}
			want += next[2]
		}
		expr := strings.ReplaceAll(regexp.QuoteMeta(want), `\.\.\.`, `[^\s"]+`)
		if !regexp.MustCompile("^" + expr + "$").MatchString(got) {
			s.Errorf("%s:%d: %s\n\tgot  %s\n\twant %s", s.file, s.line, block[2], got, want)
		}
	}
}

var assignment = regexp.MustCompile(`^([A-Z]+)=\$\((.*)\)$`)

// command runs a command and returns what it prints.
func (s *script) command(command string) string {
	if m := assignment.FindStringSubmatch(command); m != nil {
		s.vars[m[1]] = strings.TrimSpace(s.command(m[2]))
		return ""
	}
	curl, filter, _ := strings.Cut(command, " | ")
	out := s.curl(s.words(curl))
	member, ok := strings.CutPrefix(filter, "jq -r .")
	switch {
	case filter == "jq .":
		var indented bytes.Buffer
		err := json.Indent(&indented, []byte(out), "", "  ")
		s.must(err == nil, "%s: got %q, want JSON: %v", command, out, err)
		return strings.TrimSpace(indented.String()) + "\n"
	case ok:
		var object map[string]any
		err := json.Unmarshal([]byte(out), &object)
		s.must(err == nil && object[member] != nil, "%s: got %q, want an object with this member", command, out)
		return fmt.Sprintln(object[member])
	}
	s.must(filter == "", "%s: got %q, want jq . or jq -r .member", command, filter)
	return out
}

var word = regexp.MustCompile(`\s+(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^\s'"\\]+))`)

// words returns the words of a command. Variables count outside single quotes.
func (s *script) words(command string) (words []string) {
	command = " " + command
	s.must(word.ReplaceAllString(command, "") == "", "%s: want words in one kind of quotes or none", command)
	for _, m := range word.FindAllStringSubmatch(command, -1) {
		words = append(words, m[1]+os.Expand(strings.ReplaceAll(m[2], `\"`, `"`)+m[3], func(name string) string {
			s.must(s.vars[name] != "", "%s: $%s has no value", command, name)
			return s.vars[name]
		}))
	}
	return words
}

// curl sends the request that a curl command describes, and returns what curl prints.
func (s *script) curl(words []string) string {
	var header, data []string
	collect := func(list *[]string) func(string) error {
		return func(value string) error { *list = append(*list, value); return nil }
	}
	flags := flag.NewFlagSet("curl", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Bool("s", false, "")
	method, output, format := flags.String("X", "", ""), flags.String("o", "", ""), flags.String("w", "", "")
	flags.Func("H", "", collect(&header))
	flags.Func("d", "", collect(&data))
	flags.Func("data-urlencode", "", func(value string) error {
		name, text, _ := strings.Cut(value, "=")
		data = append(data, name+"="+url.QueryEscape(text))
		return nil
	})
	err := flags.Parse(words[1:])
	path, ok := strings.CutPrefix(flags.Arg(0), "http://127.0.0.1:8000")
	if err == nil && ok {
		err = flags.Parse(flags.Args()[1:])
	}
	ok = ok && err == nil && flags.NArg() == 0 && words[0] == "curl" && (*output == "" || *output == "/dev/null")
	s.must(ok, "got %q, want curl with known options and one URL", words)
	isType := func(line string) bool { return strings.HasPrefix(line, "Content-Type: ") }
	if data != nil && !slices.ContainsFunc(header, isType) {
		header = append(header, "Content-Type: application/x-www-form-urlencoded")
	}
	if *method == "" && data != nil {
		*method = "POST"
	}
	got := s.server.Send(s.TB, cmp.Or(*method, "GET")+" "+path, header, strings.Join(data, "&"))
	status := strings.ReplaceAll(*format, `%{http_code}\n`, fmt.Sprintln(got.Status))
	if *output != "" {
		return status
	}
	return got.Body + status
}
