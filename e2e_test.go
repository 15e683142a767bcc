package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// These tests speak HTTP to the real handler and know nothing else of it. The
// spec is testdata/*.txt, transcripts that TestScripts replays, and the
// README's walkthrough, which TestWalkthrough replays.

// liveSecret signs the tokens of every server that these tests start.
const liveSecret = "change-me-to-a-long-random-string-at-least-32-bytes-please"

// liveStart is what the clock of a server shows until a script moves it.
var liveStart = time.Unix(1795503214, 0).UTC()

// A liveServer is the service behind a real listener, with a clock that a test
// moves, and with all that it logs.
type liveServer struct {
	*httptest.Server
	moved            atomic.Int64 // how far the clock stands after liveStart, a time.Duration
	textLog, jsonLog bytes.Buffer // guarded by slog's handlers, read once the server is closed

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
	s := &liveServer{ids: map[string]bool{}, passwords: map[string]struct{}{"admin-password": {}}}
	all := &slog.HandlerOptions{Level: slog.LevelDebug}
	logger := slog.New(slog.NewMultiHandler(slog.NewTextHandler(&s.textLog, all), slog.NewJSONHandler(&s.jsonLog, all)))
	srv, err := newServer(cfg, s.now, logger)
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

// checkLog fails if the log lacks a request that was answered, or holds what
// none may: a secret, a password, a hash or a token.
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

// TestScripts replays each transcript in testdata against a server of its own.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/*.txt: got no script, want at least one (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := &replay{T: t, file: file, line: 1, vars: map[string]string{}}
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

// let makes a token of a header and claims as they stand, however wrong, and
// signs it rightly: let NAME = token {"alg":"HS256"} {"sub":"admin-0"}.
func (r *replay) let(text string) {
	words := strings.SplitN(text, " ", 5)
	r.must(len(words) == 5 && words[1] == "=" && words[2] == "token", "got let %s, want let NAME = token HEADER CLAIMS", text)
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(r.expand(words[3]))) + "." + b64.EncodeToString([]byte(r.expand(words[4])))
	mac := hmac.New(sha256.New, []byte(liveSecret))
	mac.Write([]byte(signed))
	r.keep(words[0], signed+"."+b64.EncodeToString(mac.Sum(nil)))
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
	head, body = r.message(answer)
	r.check(request, "status", strconv.Itoa(got.status), head[0])
	for _, line := range head[1:] {
		name, value, _ := strings.Cut(line, ": ") // No value: there must be no such header.
		name = strings.TrimPrefix(name, "!")
		r.check(request, name, strings.Join(got.header.Values(name), ", "), value)
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

// canonical writes a JSON value in one way. What is not JSON stays as it is.
func canonical(text string) string {
	var value any
	if json.Unmarshal([]byte(text), &value) != nil {
		return text
	}
	out, _ := json.Marshal(value)
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(out))
}

// pattern is what an expected text may have in place of a value that nobody
// can foretell. With a name it keeps the value: <jwt ACCESS>.
var pattern = regexp.MustCompile(`<(jwt|uuid)(?: (\w+))?>`)

var shapes = map[string]string{
	"jwt":  `eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}`,
	"uuid": `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`,
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
	got := sh.server.send(sh.T, c.method+" "+c.path, c.header, strings.Join(c.data, "&"))
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

// TestBodyRefusedBeforeItComes announces a body over the limit and never sends
// a byte of it: the 413 does not wait.
func TestBodyRefusedBeforeItComes(t *testing.T) {
	s := startServer(t)
	body, writer := io.Pipe()
	defer writer.Close()
	req, err := http.NewRequest("POST", s.URL+"/auth/register", body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 64<<10 + 1
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of 64 KiB and a byte: got %d, want 413", resp.StatusCode)
	}
}
