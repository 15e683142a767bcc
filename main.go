// Command jwt-auth-api is an HTTP service in which people register and log in with e-mail and password, and are known
// by a JWT from then on.
package main

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)   // A second signal ends the program at once.
	signal.Ignore(syscall.SIGPIPE) // The service goes on if what reads its log ends.
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run serves until ctx ends:
//
//  1. read the settings, all of whose faults are told at once;
//  2. open the listener, so that a port that is taken is told before the work begins;
//  3. build the server, which hashes the admin's password;
//  4. serve;
//  5. when ctx ends, close the listener and let the requests in flight finish.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	if len(args) > 0 {
		return errors.New("no arguments are taken: settings are environment variables, see README.md")
	}
	dotenv, dotenvErr := readDotenv()
	cfg, err := loadSettings(environ, dotenv)
	err = errors.Join(dotenvErr, err)
	log, lines := startLog(cfg.logFormat, stderr)
	defer lines.close()
	for _, unknown := range cfg.unknown {
		log.Warn("unknown variable", slog.String("name", unknown), slog.String("nearest", nearestSetting(unknown)))
	}
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("APP_ADDR: %w", err)
	}
	s, err := newServer(cfg, time.Now, log)
	if err != nil {
		listener.Close()
		return err
	}
	return s.serve(ctx, listener, defaultTimeouts)
}

// A logger writes the log, a line for each request and one for each event.
type logger struct {
	*slog.Logger
	request func(requestLine)
}

// newLogger writes lines of text, or of JSON, to a writer that is safe for concurrent use.
func newLogger(format string, w io.Writer) *logger {
	if format == "json" {
		return &logger{slog.New(slog.NewJSONHandler(w, nil)), func(l requestLine) { w.Write(l.appendJSON(make([]byte, 0, 320))) }}
	}
	return &logger{slog.New(slog.NewTextHandler(w, nil)), func(l requestLine) { w.Write(l.appendText(make([]byte, 0, 256))) }}
}

// startLog returns a logger and what writes its lines, which is to be closed.
func startLog(format string, w io.Writer) (log *logger, lines *lineBuffer) {
	lines = newLineBuffer(w, func(n int) { log.Warn("log lines lost", slog.Int("lines", n)) })
	log = newLogger(format, lines)
	return log, lines
}

// A requestLine is what the log says of a request. It is written as log/slog writes it, byte for byte, but in a quarter of
// the time or less: slog's 1.5 µs are more than it takes to verify a token.
type requestLine struct {
	time      time.Time // of the end
	level     slog.Level
	method    string
	route     string
	status    int
	bytes     int // of the body
	duration  time.Duration
	client    netip.Addr
	requestID string
}

// appendText appends the line as a slog.TextHandler writes it. A route may have a space; no value has what needs an escape.
func (l *requestLine) appendText(dst []byte) []byte {
	dst = append(dst, "time="...)
	dst = appendMillis(dst, l.time)
	dst = append(dst, " level="...)
	dst = append(dst, l.level.String()...)
	dst = append(dst, " msg=request method="...)
	dst = append(dst, l.method...)
	dst = append(dst, " route="...)
	if l.route == "" || strings.Contains(l.route, " ") {
		dst = append(dst, '"')
		dst = append(dst, l.route...)
		dst = append(dst, '"')
	} else {
		dst = append(dst, l.route...)
	}
	dst = append(dst, " status="...)
	dst = strconv.AppendInt(dst, int64(l.status), 10)
	dst = append(dst, " bytes="...)
	dst = strconv.AppendInt(dst, int64(l.bytes), 10)
	dst = append(dst, " duration="...)
	dst = append(dst, l.duration.String()...)
	dst = append(dst, " client="...)
	dst = l.client.AppendTo(dst)
	dst = append(dst, " request_id="...)
	dst = append(dst, l.requestID...)
	return append(dst, '\n')
}

// appendMillis appends a time as RFC 3339 has it, with milliseconds, the way log/slog does. Of the layouts with a fraction
// only RFC3339Nano is fast. It drops zeros at the end, of which the tenth of a millisecond leaves none.
func appendMillis(dst []byte, t time.Time) []byte {
	end := len(dst) + len("2006-01-02T15:04:05.000")
	dst = t.Truncate(time.Millisecond).Add(time.Millisecond/10).AppendFormat(dst, time.RFC3339Nano)
	return slices.Delete(dst, end, end+1)
}

// appendJSON appends the line as a slog.JSONHandler writes it.
func (l *requestLine) appendJSON(dst []byte) []byte {
	dst = append(dst, `{"time":"`...)
	dst = l.time.AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","level":"`...)
	dst = append(dst, l.level.String()...)
	dst = append(dst, `","msg":"request","method":"`...)
	dst = append(dst, l.method...)
	dst = append(dst, `","route":"`...)
	dst = append(dst, l.route...)
	dst = append(dst, `","status":`...)
	dst = strconv.AppendInt(dst, int64(l.status), 10)
	dst = append(dst, `,"bytes":`...)
	dst = strconv.AppendInt(dst, int64(l.bytes), 10)
	dst = append(dst, `,"duration":`...)
	dst = strconv.AppendInt(dst, int64(l.duration), 10)
	dst = append(dst, `,"client":"`...)
	dst = l.client.AppendTo(dst)
	dst = append(dst, `","request_id":"`...)
	dst = append(dst, l.requestID...)
	return append(dst, "\"}\n"...)
}

// A lineBuffer writes lines in a goroutine of its own, so that a log that is slow, or stuck, holds up no answer. A line is
// written at once if the service is quiet. Under load, lines that come within flushEvery of each other are written
// together: a system call for each would cost a request more than its token does. It is safe for concurrent use.
type lineBuffer struct {
	w        io.Writer
	tellLost func(lines int)
	come     chan struct{} // has an element when lines have come
	closing  chan struct{}
	closed   chan struct{}

	mu    sync.Mutex // guards the fields below
	lines []byte     // that wait
	taken []byte     // that are written; their memory is for those to come
	lost  int        // lines for which there was no room
}

const (
	flushEvery = 10 * time.Millisecond
	maxWaiting = 4 << 20 // bytes, half a second of a log under full load
	closeWait  = time.Second
)

// newLineBuffer starts to write what comes. tellLost is called when lines were lost, and may write one.
func newLineBuffer(w io.Writer, tellLost func(lines int)) *lineBuffer {
	b := &lineBuffer{w: w, tellLost: tellLost, come: make(chan struct{}, 1), closing: make(chan struct{}), closed: make(chan struct{})}
	go b.run()
	return b
}

// Write takes a line, or counts it as lost if too many wait.
func (b *lineBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	if len(b.lines)+len(line) <= maxWaiting {
		b.lines = append(b.lines, line...)
	} else {
		b.lost++
	}
	b.mu.Unlock()
	select {
	case b.come <- struct{}{}:
	default: // It has an element.
	}
	return len(line), nil
}

// run writes until close is called.
func (b *lineBuffer) run() {
	defer close(b.closed)
	for open := true; open; {
		select {
		case <-b.come:
		case <-b.closing:
			open = false
		}
		b.flush()
		select {
		case <-time.After(flushEvery):
		case <-b.closing:
		}
	}
	b.flush() // what tellLost has said
}

// flush writes the lines that wait. There is nobody to tell of an error. What was lost came after these lines, and is
// told before they are written, while there is room again.
func (b *lineBuffer) flush() {
	lines, lost := b.take()
	if lost > 0 {
		b.tellLost(lost)
	}
	if len(lines) > 0 {
		b.w.Write(lines)
	}
}

func (b *lineBuffer) take() (lines []byte, lost int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines, b.taken = b.taken[:0], b.lines
	lost, b.lost = b.lost, 0
	return b.taken, lost
}

// close writes what is left, for which a log that is stuck has closeWait.
func (b *lineBuffer) close() {
	close(b.closing)
	select {
	case <-b.closed:
	case <-time.After(closeWait):
	}
}

// A server is the service: what its handlers share.
type server struct {
	users       *users
	passwords   *passwords
	tokens      *tokens
	throttle    *throttle
	proxies     []netip.Prefix // whose X-Forwarded-For counts
	log         *logger
	logKey      secret        // for what the log may only recognise, not read
	largeBodies chan struct{} // has one element for each body over smallBody
	docs        bool          // whether /docs and /openapi.json are served
}

// newServer builds a server and registers the admin.
func newServer(cfg settings, now func() time.Time, log *logger) (*server, error) {
	logKey, err := hkdf.Key(sha256.New, []byte(cfg.jwtSecret.reveal()), nil, "jwt-auth-api log", sha256.Size)
	if err != nil {
		return nil, err
	}
	s := &server{
		users:     newUsers(),
		passwords: newPasswords(cfg.argon2),
		tokens: &tokens{
			keys:       newKeys(append([]secret{cfg.jwtSecret}, cfg.previousSecrets...)),
			issuer:     cfg.issuer,
			accessTTL:  cfg.accessTTL,
			refreshTTL: cfg.refreshTTL,
			now:        now,
		},
		proxies:     cfg.trustedProxies,
		log:         log,
		logKey:      newSecret(string(logKey)),
		largeBodies: make(chan struct{}, maxLargeBodies),
		docs:        cfg.docs,
	}
	if cfg.throttle {
		s.throttle = newThrottle(now)
	}
	if cfg.adminEmail == "" {
		return s, nil
	}
	admin := user{id: "admin-0", email: cfg.adminEmail, name: "Admin", scopes: "me admin"}
	admin.hash = s.passwords.hash(cfg.adminPassword.reveal())
	debug.FreeOSMemory() // It may be hours until somebody logs in: the 64 MiB of this hash are given back.
	return s, s.users.add(admin)
}

func newKeys(secrets []secret) []*hmacKey {
	var keys []*hmacKey
	for _, s := range secrets {
		keys = append(keys, newHMACKey([]byte(s.reveal())))
	}
	return keys
}

// addressHash is what the log says of an address that fails to log in, which may be a password in the wrong field.
func (s *server) addressHash(address string) slog.Attr {
	mac := hmac.New(sha256.New, []byte(s.logKey.reveal()))
	io.WriteString(mac, addressKey(address))
	return slog.String("address_hash", hex.EncodeToString(mac.Sum(nil)[:8]))
}

// timeouts are what a client has time for.
type timeouts struct {
	header   time.Duration // to send the header of a request
	request  time.Duration // to send all of it, its body included
	answer   time.Duration // from the end of the header until it has taken the answer, the wait for a hash included
	idle     time.Duration // between two requests
	shutdown time.Duration // for requests in flight when the service is to end
}

var defaultTimeouts = timeouts{
	header:   5 * time.Second,
	request:  10 * time.Second,
	answer:   30 * time.Second,
	idle:     time.Minute,
	shutdown: 10 * time.Second,
}

// maxHeader bounds the header of a request, in bytes. net/http adds 4096 to what it is given.
const maxHeader = 16 << 10

// serve answers requests until ctx ends.
func (s *server) serve(ctx context.Context, listener net.Listener, limits timeouts) error {
	hs := &http.Server{
		Handler:                      s.handler(),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            limits.header,
		ReadTimeout:                  limits.request,
		WriteTimeout:                 limits.answer,
		IdleTimeout:                  limits.idle,
		MaxHeaderBytes:               maxHeader - 4096,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(jsonListener{listener, s.log.Logger}) }()
	s.log.Info("listening", slog.String("addr", listener.Addr().String()))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	s.log.Info("shutting down")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limits.shutdown)
	defer cancel()
	if err := hs.Shutdown(ctx); err != nil {
		s.log.Warn("requests cut off", slog.Any("reason", err))
		hs.Close()
	}
	return nil
}

// A jsonListener sees to it that what net/http answers by itself, where it can't make out a request, looks like every
// other answer. net/http has no hook for that, but it writes such an answer at once and in one form.
type jsonListener struct {
	net.Listener
	log *slog.Logger
}

func (l jsonListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		return jsonConn{newLazyConn(tcp), l.log}, nil
	}
	return conn, err
}

type jsonConn struct {
	*lazyConn
	log *slog.Logger
}

// plainAnswer is how the answers of net/http's own begin, the second that to an Expect that it doesn't know. That is all
// of their header, and none of ours is without an X-Request-Id, so that nothing else is taken for one.
var plainAnswer = regexp.MustCompile(`^HTTP/1\.1 ([45]\d\d) [^\r\n]*\r\n(?:` +
	`Content-Type: text/plain; charset=utf-8\r\nConnection: close|` +
	`Connection: close\r\nDate: [^\r\n]*\r\nContent-Length: 0)\r\n\r\n`)

func (c jsonConn) Write(b []byte) (int, error) {
	// Most answers are seen by this not to be one, in a tenth of the time.
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(b, []byte("HTTP/1.1 5")) {
		return c.lazyConn.Write(b)
	}
	m := plainAnswer.FindSubmatch(b)
	if m == nil {
		return c.lazyConn.Write(b)
	}
	status, _ := strconv.Atoi(string(m[1]))
	id, text := rand.Text(), http.StatusText(status)
	body := `{"detail":"` + text + `"}`
	peer, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	c.log.Info("not a request", slog.Int("status", status), slog.String("client", plainAddress(peer.Addr()).String()), slog.String("request_id", id))
	_, err := fmt.Fprintf(c.lazyConn, "HTTP/1.1 %d %s\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n"+
		"Content-Type: application/json\r\nDate: %s\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: %s\r\n\r\n%s",
		status, text, len(body), time.Now().UTC().Format(http.TimeFormat), id, body)
	return len(b), err
}

// A lazyConn is a connection whose deadlines cost nothing until something has to wait.
type lazyConn struct {
	*net.TCPConn
	read, write deadline
}

func newLazyConn(conn *net.TCPConn) *lazyConn {
	return &lazyConn{TCPConn: conn, read: deadline{tell: conn.SetReadDeadline}, write: deadline{tell: conn.SetWriteDeadline}}
}

func (c *lazyConn) SetReadDeadline(t time.Time) error  { return c.read.set(t) }
func (c *lazyConn) SetWriteDeadline(t time.Time) error { return c.write.set(t) }

func (c *lazyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.read.set(t), c.write.set(t))
}

func (c *lazyConn) Read(b []byte) (int, error) {
	if err := c.read.begin(); err != nil {
		return 0, err
	}
	defer c.read.end()
	return c.TCPConn.Read(b)
}

func (c *lazyConn) Write(b []byte) (int, error) {
	if err := c.write.begin(); err != nil {
		return 0, err
	}
	defer c.write.end()
	return c.TCPConn.Write(b)
}

// A deadline is when the reads of a connection end, or its writes. net/http sets one eight times for a request, each time
// at the price of a timer, and nearly always sets it again before anything has to wait. So the connection is told of it
// when a read or a write begins, and not even then if what it was told last is as late, or later by deadlineSlack at most.
type deadline struct {
	tell func(time.Time) error // sets it on the connection

	mu      sync.Mutex // guards the fields below
	wanted  time.Time  // zero for none
	told    time.Time
	waiting bool // whether a call has begun
}

const deadlineSlack = 100 * time.Millisecond

// set takes effect on a call that waits, as net.Conn has it, and on those to come.
func (d *deadline) set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = t
	if d.waiting {
		return d.update()
	}
	return nil
}

// begin is called before a call that may wait, and end after it. Its one error is os.ErrDeadlineExceeded.
func (d *deadline) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if late := d.told.Sub(d.wanted); late < 0 || late > deadlineSlack {
		if !d.wanted.IsZero() && time.Until(d.wanted) <= 0 {
			return os.ErrDeadlineExceeded
		}
		d.update() // It fails if the connection is closed, which the call will tell.
	}
	d.waiting = true
	return nil
}

func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = false
}

// update is called with mu held.
func (d *deadline) update() error {
	d.told = d.wanted
	if time.Until(d.wanted) > 0 {
		d.told = d.wanted.Add(deadlineSlack)
	}
	return d.tell(d.told)
}

// settings are what the owner of the service decides.
type settings struct {
	jwtSecret       secret
	previousSecrets []secret
	issuer          string
	accessTTL       time.Duration
	refreshTTL      time.Duration
	addr            string
	adminEmail      string
	adminPassword   secret
	argon2          argon2Params
	throttle        bool
	trustedProxies  []netip.Prefix
	docs            bool
	logFormat       string
	unknown         []string // names in the environment that begin like ours
}

const (
	minSecret           = 32 // bytes; RFC 7518 3.2 asks for the size of the hash
	documentedPassword  = "admin-password"
	howToMakeSecret     = "make one with: openssl rand -hex 32"
	maxAccessTTLMinutes = 365 * 24 * 60
	maxRefreshTTLDays   = 3650
)

// A setting is one variable: its default, and how its text is read.
type setting struct {
	name     string
	fallback string
	read     func(cfg *settings, text string) error
}

// knownSettings lists every variable, in the order of the README.
var knownSettings = []setting{
	{"APP_JWT_SECRET", "", (*settings).readJWTSecret},
	{"APP_JWT_SECRET_FILE", "", readElsewhere},
	{"APP_JWT_PREVIOUS_SECRETS", "", (*settings).readPreviousSecrets},
	{"APP_JWT_ALGORITHM", "HS256", func(_ *settings, text string) error {
		if text != "HS256" {
			return errors.New("only HS256 is supported")
		}
		return nil
	}},
	{"APP_ISSUER", "jwt-auth-api", func(cfg *settings, text string) error {
		cfg.issuer = text
		if text == "" || !utf8.ValidString(text) {
			return errors.New("want a text in UTF-8 that is not empty")
		}
		return nil
	}},
	{"APP_ACCESS_TTL_MINUTES", "15", func(cfg *settings, text string) error {
		return readDuration(&cfg.accessTTL, text, time.Minute, maxAccessTTLMinutes)
	}},
	{"APP_REFRESH_TTL_DAYS", "7", func(cfg *settings, text string) error {
		return readDuration(&cfg.refreshTTL, text, 24*time.Hour, maxRefreshTTLDays)
	}},
	{"APP_ADDR", "127.0.0.1:8000", (*settings).readAddr},
	{"APP_ADMIN_EMAIL", "admin@example.com", (*settings).readAdminEmail},
	{"APP_ADMIN_PASSWORD", documentedPassword, (*settings).readAdminPassword},
	{"APP_ADMIN_PASSWORD_FILE", "", readElsewhere},
	{"APP_ARGON2", "m=65536,t=3,p=4", (*settings).readArgon2},
	{"APP_THROTTLE", "on", func(cfg *settings, text string) error { return readSwitch(&cfg.throttle, text) }},
	{"APP_TRUSTED_PROXIES", "", (*settings).readTrustedProxies},
	{"APP_DOCS", "on", func(cfg *settings, text string) error { return readSwitch(&cfg.docs, text) }},
	{"APP_LOG", "text", func(cfg *settings, text string) error {
		cfg.logFormat = text
		if text != "text" && text != "json" {
			return errors.New("want text or json")
		}
		return nil
	}},
}

func (cfg *settings) readJWTSecret(text string) error {
	cfg.jwtSecret = newSecret(text)
	if text == "" {
		return fmt.Errorf("missing; %s", howToMakeSecret)
	}
	return checkSecretLength(text)
}

func checkSecretLength(text string) error {
	if len(text) < minSecret {
		return fmt.Errorf("want at least %d bytes, got %d; %s", minSecret, len(text), howToMakeSecret)
	}
	return nil
}

// readPreviousSecrets reads secrets with commas between them. Tokens that they signed hold until they end, so that a new
// secret logs nobody out.
func (cfg *settings) readPreviousSecrets(text string) error {
	if text == "" {
		return nil
	}
	for i, previous := range strings.Split(text, ",") {
		previous = strings.TrimSpace(previous)
		if err := checkSecretLength(previous); err != nil {
			return fmt.Errorf("secret %d: %w", i+1, err)
		}
		cfg.previousSecrets = append(cfg.previousSecrets, newSecret(previous))
	}
	return nil
}

// readElsewhere is for the name of a file, which readFiles has read by now.
func readElsewhere(*settings, string) error { return nil }

// readFiles sets the variables that are to be read from a file, NAME_FILE being its path. A line break at the file's end
// is no part of the value. The faults are returned by the variable that lacks its value for it.
func readFiles(values map[string]string) map[string]error {
	faults := make(map[string]error)
	for _, name := range []string{"APP_JWT_SECRET", "APP_ADMIN_PASSWORD"} {
		path := values[name+"_FILE"]
		if path == "" {
			continue
		}
		content, err := os.ReadFile(path)
		switch {
		case values[name] != "":
			faults[name] = fmt.Errorf("%s_FILE: %s is set as well", name, name)
		case err != nil:
			faults[name] = fmt.Errorf("%s_FILE: can't read the file: %w", name, withoutPath(err))
		default:
			values[name] = strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
		}
	}
	return faults
}

// withoutPath returns the reason of a file error alone: the path may be a secret that stands in the wrong variable.
func withoutPath(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// readDuration reads a whole number of units from 1 to most.
func readDuration(d *time.Duration, text string, unit time.Duration, most int) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most || strconv.Itoa(n) != text {
		return fmt.Errorf("want a whole number from 1 to %d", most)
	}
	*d = time.Duration(n) * unit
	return nil
}

// readSwitch reads on or off.
func readSwitch(on *bool, text string) error {
	*on = text == "on"
	if text != "on" && text != "off" {
		return errors.New("want on or off")
	}
	return nil
}

func (cfg *settings) readAddr(text string) error {
	cfg.addr = text
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return errors.New("want host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return errors.New("want a port from 0 to 65535")
	}
	return nil
}

// The least parameters that OWASP's Password Storage Cheat Sheet allows for argon2id.
var owaspFloor = argon2Params{memory: 19456, time: 2, threads: 1}

// memoryPerHash is how much memory a flood of logins takes, as a multiple of what the hashes that run at once take: the
// blocks of those before them are not collected at once. Measured: 196 to 206 MiB with one hash of 64 MiB,
// the 9 MiB of an idle service among them.
const memoryPerHash = 3

func (cfg *settings) readArgon2(text string) (err error) {
	if cfg.argon2, err = parseArgon2Params(text); err != nil {
		return fmt.Errorf("%w, and at least %s", err, owaspFloor)
	}
	if cfg.argon2.memory < owaspFloor.memory || cfg.argon2.time < owaspFloor.time {
		return fmt.Errorf("want at least %s", owaspFloor)
	}
	need := uint64(cfg.argon2.memory) << 10 * uint64(hashesAtOnce(cfg.argon2)) * memoryPerHash
	if have := availableMemory(); need > have {
		return fmt.Errorf("%s takes up to %d MiB here, and there are %d", text, need>>20, have>>20)
	}
	return nil
}

// availableMemory returns the bytes of memory that this process may take, as far as Linux and the Go runtime tell: the
// least of the machine's, a container's (the control group that it sees as its root) and GOMEMLIMIT.
func availableMemory() uint64 {
	have := uint64(debug.SetMemoryLimit(-1))
	group, _ := os.ReadFile("/sys/fs/cgroup/memory.max")
	if n, err := strconv.ParseUint(strings.TrimSpace(string(group)), 10, 64); err == nil {
		have = min(have, n)
	}
	machine, _ := os.ReadFile("/proc/meminfo")
	var kib uint64
	if n, _ := fmt.Sscanf(string(machine), "MemTotal: %d kB", &kib); n == 1 {
		have = min(have, kib<<10)
	}
	return have
}

// readTrustedProxies reads networks (CIDR) or addresses with commas between them.
func (cfg *settings) readTrustedProxies(text string) error {
	if text == "" {
		return nil
	}
	for i, item := range strings.Split(text, ",") {
		item = strings.TrimSpace(item)
		prefix, err := netip.ParsePrefix(item)
		if addr, addrErr := netip.ParseAddr(item); addrErr == nil && addr.Zone() == "" {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || prefix.Addr().Is4In6() {
			return fmt.Errorf("network %d: want networks as 10.0.0.0/8, with commas between them", i+1)
		}
		cfg.trustedProxies = append(cfg.trustedProxies, prefix.Masked())
	}
	return nil
}

func (cfg *settings) readAdminEmail(text string) (err error) {
	if text != "" {
		cfg.adminEmail, err = parseAddress(text)
	}
	return err
}

func (cfg *settings) readAdminPassword(text string) error {
	cfg.adminPassword = newSecret(text)
	if !utf8.ValidString(text) {
		return errors.New("want a text in UTF-8")
	}
	if n := utf8.RuneCountInString(text); n < minPassword || n > maxPassword {
		return fmt.Errorf("want %d to %d characters, got %d", minPassword, maxPassword, n)
	}
	return nil
}

// loadSettings takes each setting from the environment, else from the text of .env, else its default. Its error names
// every fault, a line each.
func loadSettings(environ []string, dotenv string) (settings, error) {
	cfg := settings{}
	values, faults := parseDotenv(dotenv)
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if isKnown(name) {
			values[name] = value
		} else if strings.HasPrefix(name, "APP_") {
			cfg.unknown = append(cfg.unknown, name)
		}
	}
	fileFaults := readFiles(values)
	for _, setting := range knownSettings {
		if err := fileFaults[setting.name]; err != nil {
			faults = append(faults, err)
			continue
		}
		text, ok := values[setting.name]
		if !ok {
			text = setting.fallback
		}
		if err := setting.read(&cfg, text); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", setting.name, err))
		}
	}
	if len(faults) == 0 {
		faults = append(faults, cfg.checkExposure())
	}
	return cfg, errors.Join(faults...)
}

// checkExposure refuses to let anyone but this machine log in with the documented password.
func (cfg *settings) checkExposure() error {
	if cfg.adminEmail == "" || cfg.adminPassword.reveal() != documentedPassword || isLoopback(cfg.addr) {
		return nil
	}
	return fmt.Errorf("APP_ADMIN_PASSWORD: the documented one is for loopback alone; set another to listen on %s", cfg.addr)
}

// isLoopback reports whether only this machine reaches what listens on addr.
func isLoopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func isKnown(name string) bool {
	return slices.ContainsFunc(knownSettings, func(s setting) bool { return s.name == name })
}

// readDotenv returns the text of .env, if there is one.
func readDotenv() (string, error) {
	text, err := os.ReadFile(".env")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf(".env: can't read the file: %w", withoutPath(err))
	}
	return string(text), nil
}

// parseDotenv reads lines of NAME=value. A value may stand in quotes, single or double, in which nothing is an escape.
// Lines that are empty or begin with # are skipped, and so is what stands after a value behind a #.
func parseDotenv(text string) (values map[string]string, faults []error) {
	values = make(map[string]string)
	for i, line := range strings.Split(strings.TrimPrefix(text, "\uFEFF"), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, err := parseAssignment(line)
		if _, twice := values[name]; twice && err == nil {
			err = fmt.Errorf("%s is set twice", name)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf(".env line %d: %w", i+1, err))
			continue
		}
		values[name] = value
	}
	return values, faults
}

// parseAssignment reads one line of .env.
func parseAssignment(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
	name = strings.TrimSpace(name)
	if !ok {
		return "", "", errors.New("want NAME=value")
	}
	if !isKnown(name) {
		return "", "", unknownName(name)
	}
	if value, ok = unquote(value); !ok {
		return "", "", fmt.Errorf("%s: want the value in one pair of quotes, or in none", name)
	}
	return name, value, nil
}

// unknownName names a slip of the pen and what it may have been meant for, but not what is far from any name of a
// setting: that may be a part of a secret.
func unknownName(name string) error {
	nearest := nearestSetting(name)
	if editDistance(strings.ToUpper(name), nearest) > 5 || !isWord(name) {
		return errors.New("not the name of a setting")
	}
	return fmt.Errorf("%s is not a setting; did you mean %s?", name, nearest)
}

// isWord reports whether a name has nothing but what names of variables have.
func isWord(name string) bool {
	return strings.IndexFunc(name, func(r rune) bool {
		return r != '_' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}) < 0
}

// unquote takes the quotes off a value, and the comment behind it. It reports whether the quotes are a pair.
func unquote(value string) (string, bool) {
	trimmed := strings.TrimSpace(value)
	if trimmed == "" || trimmed[0] != '"' && trimmed[0] != '\'' {
		value, _, _ = strings.Cut(value, " #")
		value, _, _ = strings.Cut(value, "\t#")
		return strings.TrimSpace(value), true
	}
	inside, rest, paired := strings.Cut(trimmed[1:], trimmed[:1])
	rest = strings.TrimSpace(rest)
	return inside, paired && (rest == "" || rest[0] == '#')
}

// nearestSetting returns the setting whose name is the fewest slips of the pen away.
func nearestSetting(name string) string {
	best, least := "", 0
	for _, setting := range knownSettings {
		if d := editDistance(strings.ToUpper(name), setting.name); best == "" || d < least {
			best, least = setting.name, d
		}
	}
	return best
}

// editDistance counts the bytes to insert, delete or replace to get from a to b (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j]+1, row[j+1]+1, replaced)
		}
	}
	return row[len(b)]
}
