// Command jwt-auth-api is an HTTP service in which people register and log in with e-mail and password, and are known
// by a JWT from then on.
package main

import (
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
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // A second signal ends the program at once.
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
		return fmt.Errorf("%s: no arguments are taken; settings are environment variables, see README.md", args[0])
	}
	dotenv, err := os.ReadFile(".env")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf(".env: %w", err)
	}
	cfg, err := loadSettings(environ, string(dotenv))
	log := slog.New(slog.NewTextHandler(stderr, nil))
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
	return s.serve(ctx, listener)
}

// A server is the service: what its handlers share.
type server struct {
	users     *users
	passwords *passwords
	tokens    *tokens
	log       *slog.Logger
	logKey    []byte // for what the log may only recognise, not read
	docs      bool   // whether /docs and /openapi.json are served
}

// newServer builds a server and registers the admin.
func newServer(cfg settings, now func() time.Time, log *slog.Logger) (*server, error) {
	logKey, err := hkdf.Key(sha256.New, []byte(cfg.jwtSecret.reveal()), nil, "jwt-auth-api log", sha256.Size)
	if err != nil {
		return nil, err
	}
	s := &server{
		users:     newUsers(),
		passwords: newPasswords(cfg.argon2),
		tokens: &tokens{
			keys:       []*hmacKey{newHMACKey([]byte(cfg.jwtSecret.reveal()))},
			issuer:     cfg.issuer,
			accessTTL:  cfg.accessTTL,
			refreshTTL: cfg.refreshTTL,
			now:        now,
		},
		log:    log,
		logKey: logKey,
		docs:   cfg.docs,
	}
	if cfg.adminEmail == "" {
		return s, nil
	}
	admin := user{id: "admin-0", email: cfg.adminEmail, name: "Admin", scopes: "me admin"}
	admin.hash = s.passwords.hash(cfg.adminPassword.reveal())
	debug.FreeOSMemory() // Nobody may log in for hours: the 64 MiB of this hash are given back.
	return s, s.users.add(admin)
}

// addressHash is what the log says of an address that fails to log in, which may be a password in the wrong field.
func (s *server) addressHash(address string) slog.Attr {
	mac := hmac.New(sha256.New, s.logKey)
	io.WriteString(mac, addressKey(address))
	return slog.String("address_hash", hex.EncodeToString(mac.Sum(nil)[:8]))
}

// Time that a client has. The body's is a part of the request's. The answer's begins when the headers are read, so that
// it includes the wait for a hash.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	answerTimeout  = 30 * time.Second
	idleTimeout    = 2 * time.Minute

	// shutdownTimeout is what requests in flight have when the server is to end.
	shutdownTimeout = 10 * time.Second

	maxHeader = 16 << 10 // in bytes
)

// serve answers requests until ctx ends.
func (s *server) serve(ctx context.Context, listener net.Listener) error {
	hs := &http.Server{
		Handler:                      s.handler(),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  requestTimeout,
		WriteTimeout:                 answerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader - 4096, // net/http adds 4096 to it.
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(jsonListener{listener, s.log}) }()
	s.log.Info("listening", slog.String("addr", listener.Addr().String()))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	s.log.Info("shutting down")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
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
		return jsonConn{tcp, l.log}, err
	}
	return conn, err
}

type jsonConn struct {
	*net.TCPConn
	log *slog.Logger
}

// plainAnswer is how the answers of net/http's own begin, the second that to an Expect that it doesn't know. None of ours
// is without an X-Request-Id, and no JSON has a line break as it is, so that nothing else is taken for one.
var plainAnswer = regexp.MustCompile(`^HTTP/1\.1 ([45]\d\d) [^\r\n]*\r\n(?:` +
	`Content-Type: text/plain; charset=utf-8\r\nConnection: close|` +
	`Connection: close\r\nDate: [^\r\n]*\r\nContent-Length: 0)\r\n\r\n`)

func (c jsonConn) Write(b []byte) (int, error) {
	m := plainAnswer.FindSubmatch(b)
	if m == nil {
		return c.TCPConn.Write(b)
	}
	status, _ := strconv.Atoi(string(m[1]))
	id, text := rand.Text(), http.StatusText(status)
	body := `{"detail":"` + text + `"}`
	c.log.Info("not a request", slog.Int("status", status), slog.String("client", c.RemoteAddr().String()), slog.String("request_id", id))
	_, err := fmt.Fprintf(c.TCPConn, "HTTP/1.1 %d %s\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n"+
		"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: %s\r\n\r\n%s", status, text, len(body), id, body)
	return len(b), err
}

// settings are what the owner of the service decides.
type settings struct {
	jwtSecret     secret
	issuer        string
	accessTTL     time.Duration
	refreshTTL    time.Duration
	addr          string
	adminEmail    string
	adminPassword secret
	argon2        argon2Params
	docs          bool
	unknown       []string // names in the environment that begin like ours
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
func knownSettings() []setting {
	return []setting{
		{"APP_JWT_SECRET", "", (*settings).readJWTSecret},
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
		{"APP_DOCS", "on", func(cfg *settings, text string) error { return readSwitch(&cfg.docs, text) }},
	}
}

func (cfg *settings) readJWTSecret(text string) error {
	cfg.jwtSecret = newSecret(text)
	switch {
	case text == "":
		return fmt.Errorf("missing; %s", howToMakeSecret)
	case len(text) < minSecret:
		return fmt.Errorf("want at least %d bytes, got %d; %s", minSecret, len(text), howToMakeSecret)
	}
	return nil
}

// readDuration reads a whole number of units from 1 to most.
func readDuration(d *time.Duration, text string, unit time.Duration, most int) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
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

func (cfg *settings) readAdminEmail(text string) (err error) {
	if text != "" {
		cfg.adminEmail, err = parseAddress(text)
	}
	return err
}

func (cfg *settings) readAdminPassword(text string) error {
	cfg.adminPassword = newSecret(text)
	if n := utf8.RuneCountInString(text); n < 8 || n > 128 || !utf8.ValidString(text) {
		return fmt.Errorf("want 8 to 128 characters, got %d", n)
	}
	return nil
}

// loadSettings takes each setting from the environment, else from the text of .env, else its default. Its error names
// every fault, a line each.
func loadSettings(environ []string, dotenv string) (settings, error) {
	cfg := settings{argon2: argon2Params{memory: 64 << 10, time: 3, threads: 4}}
	values, faults := parseDotenv(dotenv)
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if isKnown(name) {
			values[name] = value
		} else if strings.HasPrefix(name, "APP_") {
			cfg.unknown = append(cfg.unknown, name)
		}
	}
	for _, setting := range knownSettings() {
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
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func isKnown(name string) bool {
	for _, setting := range knownSettings() {
		if setting.name == name {
			return true
		}
	}
	return false
}

// parseDotenv reads lines of NAME=value. A value may stand in quotes, single or double, in which nothing is an escape.
// Lines that are empty or begin with # are skipped.
func parseDotenv(text string) (values map[string]string, faults []error) {
	values = make(map[string]string)
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		_, twice := values[name]
		switch {
		case !ok:
			faults = append(faults, fmt.Errorf(".env line %d: want NAME=value", i+1))
		case !isKnown(name):
			faults = append(faults, fmt.Errorf(".env line %d: %s is not a setting; did you mean %s?", i+1, showName(name), nearestSetting(name)))
		case twice:
			faults = append(faults, fmt.Errorf(".env line %d: %s is set twice", i+1, name))
		}
		values[name] = unquote(value)
	}
	return values, faults
}

// showName returns the name, unless it hardly can be one: it may be a part of a secret.
func showName(name string) string {
	if editDistance(strings.ToUpper(name), nearestSetting(name)) > 5 {
		return "this name"
	}
	return name
}

// unquote takes the quotes off a value, or the comment that follows one without.
func unquote(value string) string {
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		return value[1 : n-1]
	}
	value, _, _ = strings.Cut(value, " #")
	return strings.TrimSpace(value)
}

// nearestSetting returns the setting whose name is the fewest slips of the pen away.
func nearestSetting(name string) string {
	best, least := "", 0
	for _, setting := range knownSettings() {
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
