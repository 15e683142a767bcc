package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// These tests speak HTTP to the real handler and know nothing else of it. The
// spec is testdata/*.txt, transcripts that TestScripts replays, and the
// README's walkthrough, which TestWalkthrough replays. Whatever both are answered
// is held against docs/openapi.json, which has to describe what routes names.

// liveSecret signs the tokens of every server that these tests start.
const liveSecret = "change-me-to-a-long-random-string-at-least-32-bytes-please"

// liveStart is what the clock of a server shows until a script moves it.
var liveStart = time.Unix(1795503214, 0).UTC()

// A liveServer is the service behind a real listener, with a clock that a test
// moves, and with all that it logs.
type liveServer struct {
	*httptest.Server
	described        description
	moved            atomic.Int64 // how far the clock stands after liveStart, a time.Duration
	textLog, jsonLog lockedBuffer

	mu        sync.Mutex          // guards the fields below
	ids       map[string]bool     // the X-Request-Id of each answer
	passwords map[string]struct{} // what was sent as a password
}

// startServer starts a server with these settings (NAME=value) beyond the
// secret and the defaults. When the test ends the server is closed, and what
// it logged is checked.
func startServer(t *testing.T, settings ...string) *liveServer {
	t.Helper()
	cfg, err := loadSettings(append([]string{"APP_JWT_SECRET=" + liveSecret}, settings...), "")
	if err != nil {
		t.Fatal(err)
	}
	cfg.argon2 = argon2Params{memory: 64, time: 1, threads: 1}
	s := &liveServer{described: readDescription(t), ids: map[string]bool{}, passwords: map[string]struct{}{"admin-password": {}}}
	all := &slog.HandlerOptions{Level: slog.LevelDebug}
	text, json := newLogger("text", &s.textLog), newLogger("json", &s.jsonLog)
	log := &logger{
		slog.New(slog.NewMultiHandler(slog.NewTextHandler(&s.textLog, all), slog.NewJSONHandler(&s.jsonLog, all))),
		func(l requestLine) { text.request(l); json.request(l) },
	}
	srv, err := newServer(cfg, s.now, log)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(srv.handler())
	s.Client().Timeout = 30 * time.Second
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() {
		s.Close() // Waits for the requests in flight, and so for their log lines.
		s.checkLog(t)
	})
	return s
}

func (s *liveServer) now() time.Time { return liveStart.Add(time.Duration(s.moved.Load())) }

// An answer is a response whose body has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

// sentPassword finds the passwords in a body, JSON or form. Those shorter than
// the 8 characters that a password must have may stand in a log by chance.
var sentPassword = regexp.MustCompile(`password(?:"\s*:\s*"|=)([^"&\s]{8,})`)

// send makes one request, "GET /me", and checks what every answer must have. A
// Transfer-Encoding header sends the body in chunks, its length untold.
func (s *liveServer) send(t *testing.T, request string, header []string, body string) answer {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Errorf("%s: %v", request, err)
		return answer{}
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	if req.Header.Get("Transfer-Encoding") != "" {
		req.ContentLength = -1
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Errorf("%s: %v", request, err)
		return answer{}
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s: reading the answer: %v", request, err)
	}
	s.note(t, request, body, resp.Header)
	return answer{resp.StatusCode, resp.Header, string(got)}
}

// note keeps what an exchange's log is searched for, and checks the headers
// that are on every answer.
func (s *liveServer) note(t *testing.T, request, body string, header http.Header) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range sentPassword.FindAllStringSubmatch(body, -1) {
		s.passwords[m[1]] = struct{}{}
	}
	if got := header["X-Content-Type-Options"]; !slices.Equal(got, []string{"nosniff"}) {
		t.Errorf("%s: X-Content-Type-Options: got %q, want nosniff", request, got)
	}
	id := header.Get("X-Request-Id")
	if id == "" || s.ids[id] {
		t.Errorf("%s: X-Request-Id: got %q, want one that no other answer has", request, id)
	}
	s.ids[id] = true
}

// logLine is what a record looks like: one line, and in it one level and one message.
var logLine = map[string]*regexp.Regexp{
	"text": regexp.MustCompile(`^time=\S+ level=(?:INFO|WARN|ERROR) msg=(?:\w+|"[\w ]+")(?: [a-z_]+=(?:[^\s"=]*|"(?:[^"\\]|\\.)*"))*\n$`),
	"json": regexp.MustCompile(`^{"time":"[^"]+","level":"(?:INFO|WARN|ERROR)","msg":"[\w ]+"(?:,"[a-z_]+":(?:\d+|"(?:[^"\\]|\\.)*"))*}\n$`),
}

// checkLog fails if the log lacks a request that was answered, has a line that
// is no record, or holds what none may: a secret, a password, a hash or a token.
func (s *liveServer) checkLog(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for format, log := range map[string]string{"text": s.textLog.String(), "json": s.jsonLog.String()} {
		for id := range s.ids {
			if !strings.Contains(log, id) {
				t.Errorf("%s log: the request %s is not in it", format, id)
			}
		}
		for line := range strings.Lines(log) {
			if !logLine[format].MatchString(line) {
				t.Errorf("%s log: got a line that is no record: %s", format, line)
			}
			for _, private := range []string{liveSecret, "$argon2id$", "eyJ"} {
				if strings.Contains(line, private) {
					t.Errorf("%s log: %q is in it: %s", format, private, line)
				}
			}
			for password := range s.passwords {
				if strings.Contains(line, password) {
					t.Errorf("%s log: the password %q is in it: %s", format, password, line)
				}
			}
		}
	}
}

// signToken makes a token of a header and claims as they stand, however wrong,
// with a signature that is right.
func signToken(header, claims string) string {
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(liveSecret))
	mac.Write([]byte(signed))
	return signed + "." + b64.EncodeToString(mac.Sum(nil))
}

// canonical writes a JSON value in one way. What is not JSON stays as it is.
func canonical(text string) string {
	var value any
	if json.Unmarshal([]byte(text), &value) != nil {
		return text
	}
	out, _ := json.Marshal(value)
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(out))
}

// TestScripts replays each transcript in testdata against a server of its own.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/*.txt: got no script, want at least one (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			r := &replay{T: t, file: file, line: 1, vars: map[string]string{}}
			text, err := os.ReadFile(file)
			r.must(err == nil, "%v", err)
			r.run(string(text))
		})
	}
}

// A replay is one run of a script.
type replay struct {
	*testing.T
	file     string
	line     int      // of the step, from 1
	settings []string // beyond the defaults
	server   *liveServer
	vars     map[string]string // what was signed and captured, by name
	before   string            // the last answer as the script has it
}

// scriptStep is a directive, a request with its answer, a line for the reader,
// or a slip of the pen.
var scriptStep = regexp.MustCompile(`(set|let|clock) (.+)\n|((?:>.*\n)+)((?:<.*\n)+)|(?:#.*)?\n|(.+)\n?`)

func (r *replay) run(script string) {
	for _, m := range scriptStep.FindAllStringSubmatch(script, -1) {
		if r.server == nil && m[1] != "set" && m[0][0] != '#' && m[0] != "\n" {
			r.server = startServer(r.T, r.settings...)
		}
		switch {
		case m[1] == "set" && r.server == nil:
			r.settings = append(r.settings, m[2])
		case m[1] == "let":
			r.let(m[2])
		case m[1] == "clock":
			by, err := time.ParseDuration(m[2])
			r.server.moved.Add(int64(by))
			r.must(err == nil, "got clock %s, want clock +15m", m[2])
		case m[3] != "":
			if m[4] != "< as before\n" {
				r.before = m[4]
			}
			r.exchange(m[3], r.before)
		default:
			r.must(m[5] == "" && m[1] == "", "got %q, want set, let, clock, # or a request with its answer", m[0])
		}
		r.line += strings.Count(m[0], "\n")
	}
}

// must ends a script that can't go on.
func (r *replay) must(ok bool, format string, args ...any) {
	if !ok {
		r.Fatalf("%s:%d: "+format, append([]any{r.file, r.line}, args...)...)
	}
}

// let signs a token and names it: let NAME = token {"alg":"HS256"} {"sub":"a"}.
func (r *replay) let(text string) {
	words := strings.SplitN(text, " ", 5)
	r.must(len(words) == 5 && words[1] == "=" && words[2] == "token", "got let %s, want let NAME = token HEADER CLAIMS", text)
	r.keep(words[0], signToken(r.expand(words[3]), r.expand(words[4])))
}

// keep gives a value a name, and the segments of a token theirs: {NAME.header},
// {NAME.payload} and {NAME.signature}.
func (r *replay) keep(name, value string) {
	r.vars[name] = value
	if parts := strings.Split(value, "."); len(parts) == 3 {
		r.vars[name+".header"], r.vars[name+".payload"], r.vars[name+".signature"] = parts[0], parts[1], parts[2]
	}
}

// exchange sends a request and compares the answer.
func (r *replay) exchange(request, answer string) {
	head, body := r.message(request)
	got := r.server.send(r.T, head[0], head[1:], body)
	request = head[0]
	if err := r.server.described.allows(request, got); err != nil {
		r.Errorf("%s:%d: %s: not as docs/openapi.json has it: %v", r.file, r.line, request, err)
	}
	head, body = r.message(answer)
	r.check(request, "status", strconv.Itoa(got.status), head[0])
	for _, line := range head[1:] {
		name, value, _ := strings.Cut(strings.TrimPrefix(line, "!"), ": ") // No value: no such header.
		values := strings.Join(got.header.Values(name), ", ")
		if _, there := got.header[http.CanonicalHeaderKey(name)]; there && values == "" {
			values = "(empty)"
		}
		r.check(request, name, values, value)
	}
	if body != "" {
		r.check(request, "body", canonical(got.body), strings.TrimPrefix(canonical(body), "(empty)"))
	}
}

var lineMark = regexp.MustCompile(`(?m)^[<>] ?`)

// message splits a request or an answer, without its marks, at its empty line.
func (r *replay) message(marked string) (head []string, body string) {
	text := r.expand(lineMark.ReplaceAllString(strings.TrimSuffix(marked, "\n"), ""))
	text, body, _ = strings.Cut(text, "\n\n")
	return strings.Split(text, "\n"), body
}

// placeholder is what expand replaces: {NAME}, {hex:ff} and {"x"*3}.
var placeholder = regexp.MustCompile(`\{([A-Z]+(?:\.[a-z]+)?)\}|\{hex:((?:[0-9a-f]{2})+)\}|\{"([^"]*)"\*(\d+)\}`)

func (r *replay) expand(text string) string {
	return placeholder.ReplaceAllStringFunc(text, func(found string) string {
		m := placeholder.FindStringSubmatch(found)
		value, known := r.vars[m[1]]
		r.must(known || m[1] == "", "%s has no value", found)
		raw, _ := hex.DecodeString(m[2])
		times, _ := strconv.Atoi(m[4])
		return value + string(raw) + strings.Repeat(m[3], times)
	})
}

// pattern is what an expected text may have in place of a value that nobody
// can foretell. With a name it keeps the value: <jwt ACCESS>.
var pattern = regexp.MustCompile(`<(jwt|uuid|etag)(?: (\w+))?>`)

var shapes = map[string]string{
	"jwt":  `eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}`,
	"uuid": `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`,
	"etag": `"[0-9a-f]{32}"`,
	"any":  `("([^"\\]|\\.)*"|[[{].*[]}]|[^]["{},]+)`, // a JSON value
}

// check compares, and keeps what the patterns in want match.
func (r *replay) check(request, what, got, want string) {
	expr := strings.ReplaceAll(regexp.QuoteMeta(want), `"<any>"`, shapes["any"])
	expr = pattern.ReplaceAllStringFunc(expr, func(found string) string {
		m := pattern.FindStringSubmatch(found)
		return strings.Replace("(?P<"+m[2]+">"+shapes[m[1]]+")", "?P<>", "", 1)
	})
	re := regexp.MustCompile("(?s)^" + expr + "$")
	values := re.FindStringSubmatch(got)
	if values == nil {
		r.Errorf("%s:%d: %s: %s\n\tgot  %s\n\twant %s", r.file, r.line, request, what, got, want)
		return
	}
	for i, name := range re.SubexpNames() {
		if name != "" {
			r.keep(name, values[i])
		}
	}
}

// TestWalkthrough runs the commands of the README's walkthrough in order, and
// compares what each sh block prints with the block that follows it. There
// "..." stands for what differs from run to run.
func TestWalkthrough(t *testing.T) {
	sh := &shell{T: t, server: startServer(t), vars: map[string]string{}}
	for _, ex := range readWalkthrough(t) {
		var got strings.Builder
		for _, command := range ex.commands {
			sh.at = fmt.Sprintf("README.md:%d: %s", ex.line, command)
			got.WriteString(sh.run(command))
		}
		want := strings.ReplaceAll(regexp.QuoteMeta(ex.prints), `\.\.\.`, `[^\s"]+`)
		if !regexp.MustCompile("^" + want + "$").MatchString(got.String()) {
			t.Errorf("README.md:%d: %s\n\tgot  %s\n\twant %s", ex.line, ex.commands, got.String(), ex.prints)
		}
	}
}

// An example of the README is an sh block, and what it prints.
type example struct {
	line     int // of the block's first command, from 1
	commands []string
	prints   string
}

var codeBlock = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// readWalkthrough returns the examples of the README's section Walkthrough: a
// block in sh opens one, a block in another language is what it prints.
func readWalkthrough(t *testing.T) (examples []example) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, section, found := strings.Cut(string(text), "\n## Walkthrough\n")
	section, _, _ = strings.Cut(section, "\n## ")
	first := strings.Count(before, "\n") + 3 // the number of the section's first line
	for _, at := range codeBlock.FindAllStringSubmatchIndex(section, -1) {
		language, code := section[at[2]:at[3]], section[at[4]:at[5]]
		line := first + strings.Count(section[:at[4]], "\n")
		last := len(examples) - 1
		switch {
		case language == "sh":
			code = strings.TrimSpace(strings.ReplaceAll(code, "\\\n", " "))
			examples = append(examples, example{line: line, commands: strings.Split(code, "\n")})
		case last < 0 || examples[last].prints != "":
			t.Fatalf("README.md:%d: what is printed must follow an sh block", line)
		default:
			examples[last].prints = code
		}
	}
	if !found || len(examples) == 0 {
		t.Fatal("README.md: got no sh block under ## Walkthrough, want at least one")
	}
	return examples
}

// A shell runs the little of sh that the walkthrough needs: one command a
// line, curl alone or into jq, its output shown or kept in a variable.
type shell struct {
	*testing.T
	server *liveServer
	at     string // the command that runs, for failures
	vars   map[string]string
}

var assignment = regexp.MustCompile(`^([A-Z]+)=\$\((.*)\)$`)

// run runs a command and returns what it prints.
func (sh *shell) run(command string) string {
	if m := assignment.FindStringSubmatch(command); m != nil {
		sh.vars[m[1]] = strings.TrimRight(sh.run(m[2]), "\n")
		return ""
	}
	curl, filter, _ := strings.Cut(command, " | ")
	return sh.jq(strings.TrimSpace(filter), sh.curl(sh.words(curl)))
}

// jq prints a JSON text indented, as jq . does, or one of its members, as jq
// -r .member does.
func (sh *shell) jq(filter, text string) string {
	if filter == "" {
		return text
	}
	if filter == "jq ." {
		var out bytes.Buffer
		if err := json.Indent(&out, []byte(strings.TrimSpace(text)), "", "  "); err != nil {
			sh.Fatalf("%s: %v", sh.at, err)
		}
		return out.String() + "\n"
	}
	name, ok := strings.CutPrefix(filter, "jq -r .")
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil || !ok {
		sh.Fatalf("%s: got %q of %q, want jq . or jq -r .member of an object (%v)", sh.at, filter, text, err)
	}
	return fmt.Sprintln(object[name])
}

var shellWord = regexp.MustCompile(`^\s+(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^\s'"\\]+))`)

// words splits a command at its spaces, as sh does, and puts the variables'
// values where their names stand outside single quotes.
func (sh *shell) words(command string) (words []string) {
	for rest := " " + strings.TrimSpace(command); rest != ""; {
		m := shellWord.FindStringSubmatch(rest)
		if m == nil {
			sh.Fatalf("%s: got %q, want a word, in one kind of quotes or none", sh.at, rest)
		}
		words = append(words, m[1]+os.Expand(strings.ReplaceAll(m[2], `\"`, `"`)+m[3], func(name string) string {
			if sh.vars[name] == "" {
				sh.Fatalf("%s: $%s has no value", sh.at, name)
			}
			return sh.vars[name]
		}))
		rest = rest[len(m[0]):]
	}
	return words
}

// curl makes the request that a curl command describes and returns what curl
// prints.
func (sh *shell) curl(words []string) string {
	c := curlCommand{show: true}
	if words[0] != "curl" {
		sh.Fatalf("%s: got %q, want curl", sh.at, words[0])
	}
	for words = words[1:]; len(words) > 0; {
		option, value, rest := words[0], "", words[1:]
		if option != "-s" && option[0] == '-' && len(rest) > 0 {
			value, rest = rest[0], rest[1:]
		}
		if !c.set(option, value) {
			sh.Fatalf("%s: got %s %s, want an option of curl that this test knows", sh.at, option, value)
		}
		words = rest
	}
	c.complete()
	request := c.method + " " + c.path
	got := sh.server.send(sh.T, request, c.header, strings.Join(c.data, "&"))
	if err := sh.server.described.allows(request, got); err != nil {
		sh.Errorf("%s: not as docs/openapi.json has it: %v", sh.at, err)
	}
	out := ""
	if c.show {
		out = got.body
	}
	return out + strings.ReplaceAll(c.format, "%{http_code}\\n", fmt.Sprintln(got.status))
}

// A curlCommand is what a curl command's options ask for.
type curlCommand struct {
	method, path string
	header, data []string
	show         bool   // the answer's body
	format       string // of what is shown after it
}

// complete adds curl's defaults: data is posted, as a form.
func (c *curlCommand) complete() {
	if c.method == "" && c.data != nil {
		c.method = "POST"
	} else if c.method == "" {
		c.method = "GET"
	}
	isType := func(line string) bool { return strings.HasPrefix(line, "Content-Type: ") }
	if c.data != nil && !slices.ContainsFunc(c.header, isType) {
		c.header = append(c.header, "Content-Type: application/x-www-form-urlencoded")
	}
}

// set takes one option, or the URL, and reports whether it knows it.
func (c *curlCommand) set(option, value string) bool {
	const base = "http://127.0.0.1:8000"
	switch {
	case option == "-s":
	case option == "-X":
		c.method = value
	case option == "-H":
		c.header = append(c.header, value)
	case option == "-d":
		c.data = append(c.data, value)
	case option == "--data-urlencode":
		name, text, _ := strings.Cut(value, "=")
		c.data = append(c.data, name+"="+url.QueryEscape(text))
	case option == "-o" && value == "/dev/null":
		c.show = false
	case option == "-w" && value == `%{http_code}\n`:
		c.format = value
	case strings.HasPrefix(option, base+"/") && c.path == "":
		c.path = strings.TrimPrefix(option, base)
	default:
		return false
	}
	return true
}

// TestRegisterAtOnce registers one address twenty times at once: one wins, and
// the others are told that it is taken.
func TestRegisterAtOnce(t *testing.T) {
	s := startServer(t)
	const body = `{"email":"user@example.com","password":"secret123","name":"Test User"}`
	statuses := make(chan int, 20)
	begin := make(chan struct{})
	for range cap(statuses) {
		go func() {
			<-begin
			statuses <- s.send(t, "POST /auth/register", []string{"Content-Type: application/json"}, body).status
		}()
	}
	close(begin)
	got := map[int]int{}
	for range cap(statuses) {
		got[<-statuses]++
	}
	if got[201] != 1 || got[409] != 19 {
		t.Errorf("twenty registrations at once: got %v, want map[201:1 409:19]", got)
	}
}

// logRows are requests in their order, and what the log says of each beyond the line that it has for every request.
// NAME in a header is what a script would have as {NAME}.
var logRows = []struct {
	request, header, body string
	status                int
	route                 string
	event                 string // its message and attributes, empty if there is none
}{
	{"GET /healthz", "", "", 200, "GET /healthz", ""},
	{"HEAD /healthz", "", "", 200, "GET /healthz", ""},
	{"HEAD /docs", "", "", 200, "GET /docs", ""},
	{"HEAD /me", "", "", 401, "GET /me", ""},
	{"HEAD /nope", "", "", 404, "/", ""},
	{"HEAD /auth/login", "", "", 405, "/auth/login", ""},
	{"GET /nope", "", "", 404, "/", ""},
	{"GET //me", "", "", 404, "", ""},
	{"DELETE /me", "", "", 405, "/me", ""},
	{"POST /auth/register", "json", `{"email":"User@example.com","password":"secret123","name":"User Name"}`, 201, "POST /auth/register", "registered user=<uuid>"},
	{"POST /auth/register", "json", `{"email":"user@example.com","password":"secret123","name":"User Name"}`, 409, "POST /auth/register", ""},
	{"POST /auth/register", "json", `{"email":"user"}`, 422, "POST /auth/register", ""},
	{"POST /auth/login", "form", "username=user@EXAMPLE.com&password=secret123", 200, "POST /auth/login", "login user=<uuid>"},
	{"POST /auth/login", "form", "username=admin@example.com&password=admin-password", 200, "POST /auth/login", "login user=admin-0"},
	{"POST /auth/login", "form", "username=user@example.com&password=wrong-password", 401, "POST /auth/login", "login refused address_hash=<hash> reason=wrong password"},
	{"POST /auth/login", "form", "username=my-own-password&password=wrong-password", 401, "POST /auth/login", "login refused address_hash=<hash> reason=unknown address"},
	{"POST /auth/login", "form", "username=slowed@example.com&password=wrong-password", 429, "POST /auth/login", "login refused address_hash=<hash> reason=throttled"},
	{"POST /auth/login", "form", "username=user@example.com", 422, "POST /auth/login", ""},
	{"POST /auth/login", "form", "grant_type=refresh_token&refresh_token=abc", 401, "POST /auth/login", "token refused reason=token has not exactly three segments"},
	{"POST /auth/refresh", "json", `{"refresh_token":"abc"}`, 401, "POST /auth/refresh", "token refused reason=token has not exactly three segments"},
	{"POST /auth/refresh", "json", `{"refresh_token":"ADMIN"}`, 401, "POST /auth/refresh", "token refused reason=type: another type of token"},
	{"POST /auth/refresh", "json", `{"refresh_token":"GONE"}`, 401, "POST /auth/refresh", "token refused reason=unknown user"},
	{"GET /me", "ADMIN", "", 200, "GET /me", ""},
	{"GET /me", "", "", 401, "GET /me", ""},
	{"GET /me", "Bearer abc", "", 401, "GET /me", "token refused reason=token has not exactly three segments"},
	{"GET /me", "FORGED", "", 401, "GET /me", "token refused reason=signature does not hold"},
	{"GET /me", "EXPIRED", "", 401, "GET /me", "token refused reason=exp: token expired"},
	{"GET /me", "NONE", "", 401, "GET /me", "token refused reason=header: alg: not HS256"},
	{"GET /admin/users", "GONE", "", 401, "GET /admin/users", "token refused reason=type: another type of token"},
	{"GET /admin/users", "LESS", "", 403, "GET /admin/users", "scope refused user=admin-0 reason=Missing required scope: admin"},
	{"GET /admin/users", "ADMIN", "", 200, "GET /admin/users", "admin list read user=admin-0 users=2"},
	{"HEAD /admin/users", "ADMIN", "", 200, "GET /admin/users", ""},
	{"GET /admin/users?limit=1", "ADMIN", "", 200, "GET /admin/users", "admin list read user=admin-0 users=1"},
	{"GET /admin/users?after=admin-0", "ADMIN", "", 200, "GET /admin/users", "admin list read user=admin-0 users=1"},
	{"GET /admin/users?limit=0", "ADMIN", "", 422, "GET /admin/users", ""},
	{"POST /auth/login", "form", strings.Repeat("x", 64<<10+1), 413, "", ""},
}

// logTokens are what logRows asks with.
func logTokens() map[string]string {
	const header = `{"alg":"HS256","typ":"JWT"}`
	claims := func(sub, scopes, typ string, exp int) string {
		return fmt.Sprintf(`{"sub":%q,"scopes":[%s],"type":%q,"exp":%d,"iss":"jwt-auth-api"}`, sub, scopes, typ, exp)
	}
	end := int(liveStart.Unix()) + 900
	admin := signToken(header, claims("admin-0", `"admin"`, "access", end))
	return map[string]string{
		"ADMIN":   admin,
		"FORGED":  admin[:len(admin)-1] + "!",
		"EXPIRED": signToken(header, claims("admin-0", `"admin"`, "access", end-900)),
		"NONE":    signToken(`{"alg":"none","typ":"JWT"}`, claims("admin-0", `"admin"`, "access", end)),
		"LESS":    signToken(header, claims("admin-0", `"me"`, "access", end)),
		"GONE":    signToken(header, claims("nobody", `"admin"`, "refresh", end)),
	}
}

// TestLog has one line for each request, and one for what its owner wants to know of it, all of which have the id that
// the answer has.
func TestLog(t *testing.T) {
	s := startServer(t)
	form := []string{"Content-Type: application/x-www-form-urlencoded"}
	for range 10 {
		s.send(t, "POST /auth/login", form, "username=slowed@example.com&password=wrong-password")
	}
	tokens := logTokens()
	var answers []answer
	for _, row := range logRows {
		header := []string{"Authorization: " + row.header}
		switch {
		case row.header == "":
			header = nil
		case row.header == "json":
			header = []string{"Content-Type: application/json"}
		case row.header == "form":
			header = form
		case tokens[row.header] != "":
			header = []string{"Authorization: Bearer " + tokens[row.header]}
		}
		body := row.body
		for name, token := range tokens {
			body = strings.ReplaceAll(body, name, token)
		}
		answers = append(answers, s.send(t, row.request, header, body))
	}
	s.Close()
	lines := s.linesByID(t)
	for i, row := range logRows {
		method, _, _ := strings.Cut(row.request, " ")
		got, want := lines[answers[i].header.Get("X-Request-Id")], []string{}
		if row.event != "" {
			want = append(want, "INFO "+row.event)
		}
		want = append(want, fmt.Sprintf("INFO request client=127.0.0.1 bytes=%d method=%s route=%s status=%d", len(answers[i].body), method, row.route, row.status))
		if answers[i].status != row.status || !slices.Equal(got, want) {
			t.Errorf("%s %s: got %d and the lines %q, want %d and %q", row.request, row.header, answers[i].status, got, row.status, want)
		}
	}
	for _, private := range []string{"@", "example.com", "my-own-password", "User Name"} {
		if strings.Contains(s.textLog.String()+s.jsonLog.String(), private) {
			t.Errorf("got %s in the log, want no address and no name", private)
		}
	}
}

// linesByID returns the lines of the log, each as its level, its message, and its attributes in an order of their own,
// by the request that they are about.
func (s *liveServer) linesByID(t *testing.T) map[string][]string {
	t.Helper()
	byID := map[string][]string{}
	for text := range strings.Lines(s.jsonLog.String()) {
		var line map[string]any
		decode(t, text, &line)
		id, _ := line["request_id"].(string)
		out := fmt.Sprint(line["level"], " ", line["msg"])
		for _, name := range []string{"client", "address_hash", "user", "users", "bytes", "method", "route", "status", "reason", "panic", "stack"} {
			if value, ok := line[name]; ok {
				out += fmt.Sprint(" ", name, "=", value)
			}
		}
		if took, ok := line["duration"].(float64); ok != (line["msg"] == "request") || ok && (took <= 0 || took > 1e10) {
			t.Errorf("got the duration %v, want one of nanoseconds for a request: %s", line["duration"], text)
		}
		out = regexp.MustCompile(shapes["uuid"]).ReplaceAllString(out, "<uuid>")
		byID[id] = append(byID[id], regexp.MustCompile(`\b[0-9a-f]{16}\b`).ReplaceAllString(out, "<hash>"))
	}
	return byID
}

// TestLogNotForged sends line breaks, quotes and what looks like an attribute wherever a client can send something.
func TestLogNotForged(t *testing.T) {
	s := startServer(t, "APP_TRUSTED_PROXIES=127.0.0.0/8")
	form := []string{"Content-Type: application/x-www-form-urlencoded", "X-Forwarded-For: 192.0.2.1"}
	object := []string{"Content-Type: application/json", "X-Forwarded-For: 192.0.2.1"}
	const forged = "x%22%0D%0Atime=2026-01-01T00:00:00Z%20level=ERROR%20msg=forged%20%22"
	plain, _ := url.QueryUnescape(forged)
	rows := []struct {
		request      string
		header       []string
		body, client string
	}{
		{"GET /" + forged, nil, "", "127.0.0.1"},
		{"GET /me?" + forged + "=" + forged, nil, "", "127.0.0.1"},
		{"GET /admin/users?after=" + forged, []string{"Authorization: Bearer " + logTokens()["ADMIN"]}, "", "127.0.0.1"},
		{"FORGED'!#$%&*+|~ /me", nil, "", "127.0.0.1"},
		{"Sup3rS3cret /me", nil, "", "127.0.0.1"},
		{"get /me", nil, "", "127.0.0.1"},
		{"GET /me", []string{`Authorization: Bearer x" level=ERROR msg=forged`}, "", "127.0.0.1"},
		{"GET /me", []string{`X-Request-Id: forged`, `User-Agent: " level=ERROR`}, "", "127.0.0.1"},
		{"GET /me", []string{`X-Forwarded-For: 192.0.2.1" level=ERROR msg=forged`}, "", "127.0.0.1"},
		{"GET /me", []string{`X-Forwarded-For: fe80::1%" level=ERROR msg=forged`}, "", "fe80::1"},
		{"GET /me", []string{"X-Forwarded-For: x", "X-Forwarded-For: 192.0.2.1"}, "", "192.0.2.1"},
		{"POST /auth/login", form, "username=" + forged + "&password=" + forged, "192.0.2.1"},
		{"POST /auth/login", form, "grant_type=refresh_token&refresh_token=" + forged, "192.0.2.1"},
		{"POST /auth/register", object, `{"email":"forged@example.com","password":"secret123","name":` + strconv.Quote(plain) + `}`, "192.0.2.1"},
		{"POST /auth/refresh", object, `{"refresh_token":` + strconv.Quote(plain) + `}`, "192.0.2.1"},
	}
	var sent []string
	for _, row := range rows {
		sent = append(sent, s.send(t, row.request, row.header, row.body).header.Get("X-Request-Id"))
	}
	s.Close()
	log := s.textLog.String() + s.jsonLog.String()
	for _, forgery := range []string{"msg=forged", "level=ERROR", "X-Request-Id: forged", "Sup3rS3cret"} {
		if strings.Contains(log, forgery) {
			t.Errorf("got the log %s, want no %s in it", log, forgery)
		}
	}
	lines := s.linesByID(t)
	for i, row := range rows {
		method, _, _ := strings.Cut(row.request, " ")
		if method != "GET" && method != "POST" {
			method = "unknown"
		}
		got := strings.Join(lines[sent[i]], "\n")
		if !strings.Contains(got, "INFO request client="+row.client+" ") || !strings.Contains(got, " method="+method+" ") {
			t.Errorf("%s: got the lines %s, want one of the method %s and the client %s", row.request, got, method, row.client)
		}
	}
}

// TestSecretRotated changes the secret twice. The first change logs nobody out, the second, which drops the old secret,
// does.
func TestSecretRotated(t *testing.T) {
	const fresh = "a-fresh-secret-of-the-year-2027-with-at-least-32-bytes"
	before := startServer(t)
	during := startServer(t, "APP_JWT_SECRET="+fresh, "APP_JWT_PREVIOUS_SECRETS="+liveSecret)
	after := startServer(t, "APP_JWT_SECRET="+fresh)
	login := func(s *liveServer) map[string]any {
		pair := map[string]any{}
		got := s.send(t, "POST /auth/login", []string{"Content-Type: application/x-www-form-urlencoded"}, "username=admin@example.com&password=admin-password")
		decode(t, got.body, &pair)
		return pair
	}
	refresh := func(s *liveServer, pair map[string]any) (status int, next map[string]any) {
		got := s.send(t, "POST /auth/refresh", []string{"Content-Type: application/json"}, fmt.Sprintf(`{"refresh_token":%q}`, pair["refresh_token"]))
		decode(t, got.body, &next)
		return got.status, next
	}
	old := login(before)
	status, renewed := refresh(during, old)
	if status != 200 {
		t.Fatalf("the old refresh token during the change: got %d, want 200", status)
	}
	for _, row := range []struct {
		name   string
		server *liveServer
		pair   map[string]any
		want   int
	}{
		{"the old pair before", before, old, 200},
		{"the old pair during the change", during, old, 200},
		{"the old pair after", after, old, 401},
		{"a renewed pair before", before, renewed, 401},
		{"a renewed pair during the change", during, renewed, 200},
		{"a renewed pair after", after, renewed, 200},
		{"a new pair before", before, login(during), 401},
		{"a new pair after", after, login(during), 200},
	} {
		got := row.server.send(t, "GET /me", []string{fmt.Sprint("Authorization: Bearer ", row.pair["access_token"])}, "").status
		if status, _ := refresh(row.server, row.pair); got != row.want || status != row.want {
			t.Errorf("%s: got %d at /me and %d at /auth/refresh, want %d", row.name, got, status, row.want)
		}
	}
}

// TestBodyRefusedBeforeItComes announces a body over the limit and never sends
// a byte of it: the 413 does not wait.
func TestBodyRefusedBeforeItComes(t *testing.T) {
	s := startServer(t)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "POST /auth/register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", 64<<10+1)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("a body of 64 KiB and a byte, announced: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of 64 KiB and a byte, announced: got %d, want 413", resp.StatusCode)
	}
}

// A description is docs/openapi.json as a JSON value.
type description map[string]any

func readDescription(t *testing.T) (d description) {
	t.Helper()
	text, err := os.ReadFile("docs/openapi.json")
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		t.Fatalf("docs/openapi.json: %v", err)
	}
	return d
}

// find returns what a value of the description has under these names, one
// within the other, or nil. It follows each $ref on the way.
func (d description) find(from any, names ...string) any {
	object, _ := from.(map[string]any)
	if ref, ok := object["$ref"].(string); ok {
		from = d.find(map[string]any(d), strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		object, _ = from.(map[string]any)
	}
	if len(names) == 0 {
		return from
	}
	return d.find(object[names[0]], names[1:]...)
}

// members is find for an object. One that is not there has no members.
func (d description) members(from any, names ...string) map[string]any {
	object, _ := d.find(from, names...).(map[string]any)
	return object
}

// operation returns what is described of a method of a path, nil if nothing is.
// A get is no GET: methods have a letter case (RFC 9110 9.1).
func (d description) operation(method, path string) map[string]any {
	if method != strings.ToUpper(method) {
		return nil
	}
	return d.members(map[string]any(d), "paths", path, strings.ToLower(method))
}

// allows returns how an answer differs from what is described. For a method or
// a path that is not described it has no say: the scripts alone tell what a
// HEAD, a 404 and a 405 look like.
func (d description) allows(request string, got answer) error {
	method, target, _ := strings.Cut(request, " ")
	path, _, _ := strings.Cut(target, "?")
	operation := d.operation(method, path)
	if operation == nil {
		return nil
	}
	response := d.find(operation, "responses", strconv.Itoa(got.status))
	if response == nil {
		return fmt.Errorf("status: got %d, want one of %q", got.status, sortedKeys(d.members(operation, "responses")))
	}
	return errors.Join(d.allowsHeader(response, got.header), d.allowsBody(response, got))
}

func (d description) allowsHeader(response any, got http.Header) (err error) {
	for _, name := range sortedKeys(d.members(response, "headers")) {
		header := d.find(response, "headers", name)
		var value any = strings.Join(got.Values(name), ", ")
		if d.find(header, "schema", "type") == "integer" {
			json.Unmarshal([]byte(got.Get(name)), &value) // What is no number stays text, and does not fit.
		}
		if len(got.Values(name)) > 0 {
			err = errors.Join(err, d.fits(name, d.find(header, "schema"), value))
		} else if d.find(header, "required") == true {
			err = errors.Join(err, fmt.Errorf("%s: got none, want one", name))
		}
	}
	return err
}

func (d description) allowsBody(response any, got answer) error {
	media, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
	content := d.members(response, "content")
	if content[media] == nil {
		return fmt.Errorf("Content-Type: got %q, want one of %q", media, sortedKeys(content))
	}
	var value any
	if err := json.Unmarshal([]byte(got.body), &value); err != nil {
		return fmt.Errorf("body: got %q, want JSON: %w", got.body, err)
	}
	return d.fits("body", d.find(content, media, "schema"), value)
}

func sortedKeys(object map[string]any) []string { return slices.Sorted(maps.Keys(object)) }

// errUnknownKeyword is the error of a keyword that fits would have to ignore.
var errUnknownKeyword = errors.New("want a keyword that the checker knows")

// fits returns how a value differs from a schema. It knows the keywords of JSON
// Schema 2020-12 that the description has, and no others.
func (d description) fits(at string, schema, value any) (err error) {
	keywords, ok := schema.(map[string]any)
	if !ok { // The schema false, or none.
		return fmt.Errorf("%s: got %v, want no such value", at, value)
	}
	for _, keyword := range sortedKeys(keywords) {
		err = errors.Join(err, d.fitsKeyword(at, keywords, keyword, value))
	}
	return err
}

// fitsKeyword takes the keywords that have schemas in them.
func (d description) fitsKeyword(at string, schema map[string]any, keyword string, value any) (err error) {
	list, _ := value.([]any)
	object, _ := value.(map[string]any)
	properties, _ := schema["properties"].(map[string]any)
	switch want := schema[keyword]; keyword {
	case "$ref":
		err = d.fits(at, d.find(schema), value)
	case "oneOf":
		misfit := func(one any) bool { return d.fits(at, one, value) != nil }
		if n := len(slices.DeleteFunc(slices.Clone(want.([]any)), misfit)); n != 1 {
			err = fmt.Errorf("%s: got %v, which fits %d schemas, want one of %v", at, value, n, want)
		}
	case "items":
		for i, item := range list {
			err = errors.Join(err, d.fits(at+"."+strconv.Itoa(i), want, item))
		}
	case "properties", "additionalProperties":
		for _, name := range sortedKeys(object) {
			if property, listed := properties[name]; listed && keyword == "properties" {
				err = errors.Join(err, d.fits(at+"."+name, property, object[name]))
			} else if !listed && keyword == "additionalProperties" {
				err = errors.Join(err, d.fits(at+"."+name, want, object[name]))
			}
		}
	default:
		err = holds(at, keyword, want, value)
	}
	return err
}

// holds takes the keywords that are about the value itself. What they ask of
// one type they don't ask of another.
func holds(at, keyword string, want, value any) error {
	kind, bound, size := measure(value)
	ok := true
	switch keyword {
	case "type":
		several, _ := want.([]any)
		ok = (want == kind || slices.Contains(several, any(kind))) && size == math.Trunc(size)
	case "const":
		ok = reflect.DeepEqual(want, value)
	case "enum":
		ok = slices.ContainsFunc(want.([]any), func(one any) bool { return reflect.DeepEqual(one, value) })
	case "required":
		object, isObject := value.(map[string]any)
		missing := func(name any) bool { return !slices.Contains(sortedKeys(object), name.(string)) }
		ok = !isObject || !slices.ContainsFunc(want.([]any), missing)
	case "minLength", "minimum", "minItems":
		ok = keyword != "min"+bound || size >= want.(float64)
	case "maxLength", "maximum":
		ok = keyword != "max"+bound || size <= want.(float64)
	case "uniqueItems":
		list, _ := value.([]any)
		distinct := map[string]bool{}
		for _, item := range list {
			distinct[fmt.Sprintf("%#v", item)] = true
		}
		ok = want != true || len(distinct) == len(list)
	case "format", "title", "description", "example", "examples", "deprecated", "default":
	default:
		return fmt.Errorf("%s: got %s, %w", at, keyword, errUnknownKeyword)
	}
	if !ok {
		return fmt.Errorf("%s: got %v, want %s %v", at, value, keyword, want)
	}
	return nil
}

// measure returns the type of a value, how the keywords of its bounds end, and
// what they bound: the code points of a string, a number itself, the items of
// an array. Of numbers the description has integers alone, and so it is for the
// keyword type to see that a number is whole.
func measure(value any) (kind, bound string, size float64) {
	switch value := value.(type) {
	case string:
		return "string", "Length", float64(utf8.RuneCountInString(value))
	case float64:
		return "integer", "imum", value
	case []any:
		return "array", "Items", float64(len(value))
	case map[string]any:
		return "object", "Properties", 0
	}
	return "", "", 0
}

// TestChecker holds the checker of schemas against one value that fits and one
// that does not, a keyword a row.
func TestChecker(t *testing.T) {
	var d description
	decode(t, `{"short":{"maxLength":2}}`, &d)
	for _, row := range []struct{ schema, fits, not string }{
		{`{"$ref":"#/short"}`, `"ab"`, `"abc"`},
		{`{"$ref":"#/short","minLength":1}`, `"ab"`, `""`},
		{`{"$ref":"#/short","minLength":1}`, `"a"`, `"abc"`},
		{`{"type":"string"}`, `""`, `1`},
		{`{"type":"string"}`, `"null"`, `null`},
		{`{"type":"integer"}`, `-1`, `1.5`},
		{`{"type":"integer"}`, `1.0`, `"1"`},
		{`{"type":"integer"}`, `0`, `false`},
		{`{"type":"array"}`, `[]`, `{}`},
		{`{"type":"object"}`, `{}`, `[]`},
		{`{"type":["string","integer"]}`, `1`, `1.5`},
		{`{"type":["string","integer"]}`, `"1"`, `["string"]`},
		{`{"properties":{"a":{"type":"string"}}}`, `{"a":"","b":1}`, `{"a":1}`},
		{`{"properties":{"a":{"properties":{"b":{"const":1}}}}}`, `{"a":{"b":1}}`, `{"a":{"b":2}}`},
		{`{"required":["a","b"]}`, `{"a":1,"b":null}`, `{"a":1}`},
		{`{"required":["a"]}`, `[]`, `{"A":1}`},
		{`{"properties":{"a":{}},"additionalProperties":false}`, `{"a":1}`, `{"a":1,"b":1}`},
		{`{"additionalProperties":{"type":"integer"}}`, `{"a":1}`, `{"a":1,"b":"2"}`},
		{`{"items":{"type":"integer"}}`, `[1,2]`, `[1,"2"]`},
		{`{"enum":["me","admin"]}`, `"admin"`, `"Admin"`},
		{`{"enum":[[1],{"a":1}]}`, `{"a":1}`, `{"a":2}`},
		{`{"const":"ok"}`, `"ok"`, `"OK"`},
		{`{"const":[1]}`, `[1]`, `1`},
		{`{"oneOf":[{"minimum":1},{"minimum":5}]}`, `1`, `0`},
		{`{"oneOf":[{"minimum":1},{"minimum":5}]}`, `4`, `5`},
		{`{"minLength":2}`, `"éé"`, `"é"`},
		{`{"maxLength":2}`, `"😀😀"`, `"😀😀😀"`},
		{`{"minimum":2}`, `2`, `1.9`},
		{`{"maximum":2}`, `2`, `2.1`},
		{`{"minItems":2}`, `[1,1]`, `[1]`},
		{`{"uniqueItems":true}`, `[1,"1",[1]]`, `[{"a":1},2,{"a":1}]`},
	} {
		var schema, fits, not any
		decode(t, row.schema, &schema)
		decode(t, row.fits, &fits)
		decode(t, row.not, &not)
		if err := d.fits("value", schema, fits); err != nil {
			t.Errorf("%s: %s: got %v, want it to fit", row.schema, row.fits, err)
		}
		if d.fits("value", schema, not) == nil {
			t.Errorf("%s: %s: got a fit, want none", row.schema, row.not)
		}
	}
}

func decode(t *testing.T, text string, value any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), value); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// TestCheckerKnowsItsLimits asks for keywords that the checker does not have,
// wherever they are in a schema.
func TestCheckerKnowsItsLimits(t *testing.T) {
	for _, text := range []string{
		`{"pattern":"^a"}`,
		`{"type":"string","minlength":1}`,
		`{"properties":{"a":{"anyOf":[]}}}`,
		`{"additionalProperties":{"allOf":[]}}`,
		`{"items":{"maxItems":1}}`,
		`{"oneOf":[{"const":1},{"not":{}}]}`,
	} {
		var schema any
		decode(t, text, &schema)
		if err := (description{}).unknown(schema); err == nil {
			t.Errorf("%s: got %v, want %v", text, err, errUnknownKeyword)
		}
	}
}

// unknown returns an error for each keyword, in a schema and in those within
// it, that the checker does not know.
func (d description) unknown(schema any) (err error) {
	keywords, ok := schema.(map[string]any)
	if !ok {
		return nil
	}
	properties, _ := keywords["properties"].(map[string]any)
	within, _ := keywords["oneOf"].([]any)
	within = slices.AppendSeq(slices.Clone(within), maps.Values(properties))
	for _, schema := range append(within, keywords["items"], keywords["additionalProperties"]) {
		err = errors.Join(err, d.unknown(schema))
	}
	for keyword := range keywords {
		if fault := d.fitsKeyword("schema", keywords, keyword, nil); errors.Is(fault, errUnknownKeyword) {
			err = errors.Join(err, fault)
		}
	}
	return err
}

// TestDescriptionIsSound fails for a reference that leads nowhere, a keyword
// that the checker does not know, and an example that its own schema refuses.
func TestDescriptionIsSound(t *testing.T) {
	d := readDescription(t)
	for name, schema := range d.members(map[string]any(d), "components", "schemas") {
		if err := d.unknown(schema); err != nil {
			t.Errorf("docs/openapi.json.components.schemas.%s: %v", name, err)
		}
	}
	walk("docs/openapi.json", map[string]any(d), func(at string, object map[string]any) {
		if ref, ok := object["$ref"]; ok && d.find(object) == nil {
			t.Errorf("%s: got a reference to %v, want one to what is there", at, ref)
		}
		if schema, ok := object["schema"]; ok {
			err := d.unknown(schema)
			if example, ok := object["example"]; ok {
				err = errors.Join(err, d.fits("example", schema, example))
			}
			for _, name := range sortedKeys(d.members(object, "examples")) {
				err = errors.Join(err, d.fits(name, schema, d.find(object, "examples", name, "value")))
			}
			if err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	})
}

// walk visits a JSON object and all objects within it.
func walk(at string, value any, visit func(at string, object map[string]any)) {
	switch value := value.(type) {
	case map[string]any:
		visit(at, value)
		for name, member := range value {
			walk(at+"."+name, member, visit)
		}
	case []any:
		for i, item := range value {
			walk(at+"."+strconv.Itoa(i), item, visit)
		}
	}
}

// TestEveryRouteIsDescribed compares the operations with the routes.
func TestEveryRouteIsDescribed(t *testing.T) {
	var routes, described []string
	for _, route := range new(server).routes() {
		routes = append(routes, strings.ToLower(route.method)+" "+route.path)
	}
	paths := readDescription(t)["paths"].(map[string]any)
	for path, item := range paths {
		for method := range item.(map[string]any) {
			described = append(described, method+" "+path)
		}
	}
	slices.Sort(routes)
	slices.Sort(described)
	if !slices.Equal(described, routes) {
		t.Errorf("docs/openapi.json: got %q, want the routes %q", described, routes)
	}
}

// TestDescribedAnswers holds answers against the description that differ from
// it in one thing each.
func TestDescribedAnswers(t *testing.T) {
	d := readDescription(t)
	base := "Content-Type: application/json\nX-Request-Id: 1\nX-Content-Type-Options: nosniff\nCache-Control: no-store\n"
	user := `{"id":"1","email":"a@example.com","name":"A","scopes":["me"]}`
	for _, row := range []struct {
		name, request string
		status        int
		header, body  string
		want          string // a part of the error, empty for none
	}{
		{"a user", "GET /me", 200, base, user, ""},
		{"a method that is not described", "HEAD /me", 200, "", "", ""},
		{"a method in another letter case", "get /me", 405, "", "", ""},
		{"a path that is not described", "GET /nope", 404, "", "", ""},
		{"a query beside a described path", "GET /admin/users?limit=1", 418, base, user, "status: got 418"},
		{"a status that is not described", "GET /me", 403, base, user, "status: got 403"},
		{"no header where one is required", "GET /me", 200, strings.Replace(base, "Cache", "X", 1), user, "Cache-Control: got none"},
		{"a header of another value", "GET /me", 200, strings.Replace(base, "no-store", "public", 1), user, "Cache-Control: got public"},
		{"another media type", "GET /me", 200, strings.Replace(base, "json", "xml", 1), user, `Content-Type: got "application/xml"`},
		{"a body that is no JSON", "GET /me", 200, base, user + "]", "body: got "},
		{"a body with a member too many", "GET /me", 200, base, strings.Replace(user, "{", `{"hash":"x",`, 1), "body.hash: got x"},
		{"a body with a member too few", "GET /me", 200, base, strings.Replace(user, "name", "Name", 1), "want required"},
		{"a wait in seconds", "POST /auth/login", 429, base + "Retry-After: 7\n", `{"detail":"x"}`, ""},
		{"a wait that is a date", "POST /auth/login", 429, base + "Retry-After: Sun\n", `{"detail":"x"}`, "Retry-After: got Sun"},
		{"a wait of nothing", "POST /auth/login", 429, base + "Retry-After: 0\n", `{"detail":"x"}`, "Retry-After: got 0"},
	} {
		header := http.Header{}
		for line := range strings.Lines(row.header) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			header.Add(name, value)
		}
		err := d.allows(row.request, answer{row.status, header, row.body})
		if got := fmt.Sprint(err); (err == nil) != (row.want == "") || !strings.Contains(got, row.want) {
			t.Errorf("%s: got %v, want %q", row.name, err, row.want)
		}
	}
}

// TestDescribedExamples sends each example of a request, in the order of the
// routes, so that the account is there when its owner logs in. The answer has
// the status under which the description has an example of the same name. A
// refusal is the example word for word.
func TestDescribedExamples(t *testing.T) {
	s := startServer(t)
	sample := s.described.find(map[string]any(s.described), "components", "examples", "TokenPair", "value", "refresh_token")
	pair := map[string]any{}
	sent := 0
	for _, route := range new(server).routes() {
		for _, ex := range s.described.requestExamples(route) {
			if ex.values["refresh_token"] == sample {
				ex.values["refresh_token"] = pair["refresh_token"]
			}
			contentType, body := encode(t, ex.media, ex.values)
			got := s.send(t, ex.request, []string{"Content-Type: " + contentType}, body)
			ex.check(t, got)
			if err := s.described.allows(ex.request, got); err != nil {
				t.Errorf("%s, example %s: %v", ex.request, ex.name, err)
			}
			if got.status < 300 {
				decode(t, got.body, &pair)
			}
			sent++
		}
	}
	if sent == 0 {
		t.Error("docs/openapi.json: got no example of a request, want at least one")
	}
}

// A requestExample is an example of a request, and those of its operation's
// responses that have the same name.
type requestExample struct {
	request, name, media string
	values               map[string]any
	answers              map[string]any // by status
}

// requestExamples returns the examples of a route's operation in the order of
// their media types and names.
func (d description) requestExamples(r route) (examples []requestExample) {
	operation := d.operation(r.method, r.path)
	content := d.members(operation, "requestBody", "content")
	for _, media := range sortedKeys(content) {
		for _, name := range sortedKeys(d.members(content, media, "examples")) {
			ex := requestExample{request: r.method + " " + r.path, name: name, media: media, answers: map[string]any{}}
			ex.values = maps.Clone(d.members(content, media, "examples", name, "value"))
			for status := range d.members(operation, "responses") {
				answer := d.find(operation, "responses", status, "content", "application/json", "examples", name, "value")
				if answer != nil {
					ex.answers[status] = answer
				}
			}
			examples = append(examples, ex)
		}
	}
	return examples
}

func (ex requestExample) check(t *testing.T, got answer) {
	t.Helper()
	want, ok := ex.answers[strconv.Itoa(got.status)]
	if !ok || len(ex.answers) != 1 {
		t.Errorf("%s, example %s: got %d, want the one status in %q", ex.request, ex.name, got.status, sortedKeys(ex.answers))
	}
	text, _ := json.Marshal(want)
	if got, want := canonical(got.body), canonical(string(text)); ok && strings.HasPrefix(got, `{"detail":`) && got != want {
		t.Errorf("%s, example %s: got %s, want %s", ex.request, ex.name, got, want)
	}
}

// encode writes values as a body of a media type, and returns its Content-Type
// with it.
func encode(t *testing.T, media string, values map[string]any) (contentType, body string) {
	t.Helper()
	form := url.Values{}
	var out bytes.Buffer
	parts := multipart.NewWriter(&out)
	for _, name := range sortedKeys(values) {
		form.Set(name, fmt.Sprint(values[name]))
		parts.WriteField(name, fmt.Sprint(values[name]))
	}
	parts.Close()
	switch media {
	case "application/json":
		text, _ := json.Marshal(values)
		return media, string(text)
	case "application/x-www-form-urlencoded":
		return media, form.Encode()
	case "multipart/form-data":
		return parts.FormDataContentType(), out.String()
	}
	t.Fatalf("docs/openapi.json: got an example in %s, want a media type that this test can write", media)
	return "", ""
}
