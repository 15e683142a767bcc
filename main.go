// Command jwt-auth-api is an HTTP service that registers users, checks their passwords and issues
// JSON Web Tokens. It replaces a FastAPI service, "the original", whose tokens it accepts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/etcd"
	"jwt-auth-api/internal/logwriter"
	"jwt-auth-api/internal/middleware"
	"jwt-auth-api/internal/phc"
	"jwt-auth-api/internal/respond"
	"jwt-auth-api/internal/settings"
	"jwt-auth-api/internal/throttle"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)   // A second signal ends the process at once.
	signal.Ignore(syscall.SIGPIPE) // A closed log pipe does not end the service.
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the service until ctx is done:
//
//  1. load the settings, and report all errors in them;
//  2. open the listener, to report a port in use before the work begins;
//  3. build the server, which opens the store and hashes the admin's password;
//  4. serve;
//  5. when ctx is done, close the listener, finish the requests in flight, and close the store.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	if len(args) > 0 {
		return errors.New("unexpected argument; settings are environment variables, see README.md")
	}
	cfg, warnings, err := loadConfig(environ)
	var log *slog.Logger
	lines := logwriter.New(stderr, func(n int) { log.Warn("log lines dropped", "lines", n) })
	defer lines.Close()
	log = newLogger(cfg.logFormat, lines)
	for _, warning := range warnings {
		log.Warn("suspicious setting", "reason", warning)
	}
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("APP_ADDR: %w", err)
	}
	var once sync.Once // Many requests may fail at the same moment.
	s, err := newServer(ctx, cfg, time.Now, log, func(err error) {
		once.Do(func() {
			lines.Close()
			fmt.Fprintln(stderr, err)
			os.Exit(1)
		})
	})
	if err != nil {
		listener.Close()
		return err
	}
	return errors.Join(s.serve(ctx, listener), prefixed("APP_STORE", s.users.store.close()))
}

// newLogger returns a logger that writes lines of text, or of JSON, to w.
func newLogger(format string, w io.Writer) *slog.Logger {
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// newServer builds a server, opens its store and creates the admin. fatal ends the process with an
// error that occurs later.
func newServer(ctx context.Context, cfg config, now func() time.Time, log *slog.Logger, fatal func(error)) (
	*server, error) {
	s := &server{
		auth: auth{
			users:     newUsers(),
			passwords: newPasswords(cfg.argon2, cfg.hashes),
			tokens: &tokens{
				issuer:     cfg.issuer,
				accessTTL:  time.Duration(cfg.accessMinutes) * time.Minute,
				refreshTTL: time.Duration(cfg.refreshDays) * 24 * time.Hour,
				now:        now,
			},
		},
		clientIP: middleware.ClientIP(cfg.trustedProxies, log),
		origins:  cfg.origins,
		errors:   respond.Errors{Log: log, Table: responses()},
		log:      log,
		docs:     cfg.docs,
	}
	for _, key := range append([]secret{cfg.jwtSecret}, cfg.previousSecrets...) {
		s.tokens.keys = append(s.tokens.keys, newHMACKey([]byte(key.reveal())))
	}
	if cfg.throttle {
		s.throttle = throttle.New(now)
	}
	switch {
	case cfg.storePath != "":
		f, err := openFile(cfg.storePath, s.users, log.Warn, fatal)
		if err != nil {
			return nil, fmt.Errorf("APP_STORE: %w", err)
		}
		s.users.store = f
	case cfg.storeURLs != nil:
		cluster := etcd.Config{URLs: cfg.storeURLs, User: cfg.storeUser, Password: cfg.storePassword.reveal, Warn: log.Warn}
		onLoad := func(ctx context.Context) error {
			err := s.createAdmin(ctx, cfg)
			if errors.Is(err, errEmailTaken) {
				fatal(err)
			}
			return err
		}
		openEtcd(s.users, cluster, cfg.storePrefix, log, onLoad)
		return s, nil
	}
	return s, s.createAdmin(ctx, cfg)
}

// createAdmin creates the admin, unless the settings have none or there is an enabled admin.
func (s *server) createAdmin(ctx context.Context, cfg config) error {
	if cfg.adminEmail == "" || s.users.hasAdmin() {
		return nil
	}
	admin := user{ID: "admin-0", Email: cfg.adminEmail, Name: "Admin", Scopes: []string{"me", "admin"}}
	admin.hash = s.passwords.hash(cfg.adminPassword.reveal())
	debug.FreeOSMemory() // The next hash may be hours away: return the memory of this one.
	// Another replica may be faster.
	if err := s.users.add(ctx, admin); err != nil && !s.users.hasAdmin() {
		return fmt.Errorf("APP_ADMIN_EMAIL: %w", err)
	}
	return nil
}

// serve serves requests until ctx is done.
func (s *server) serve(ctx context.Context, listener net.Listener) error {
	hs := &http.Server{
		Handler:                      s.handler(),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		WriteTimeout:                 30 * time.Second, // from the end of the header on, with the wait for a hash
		IdleTimeout:                  2 * time.Minute,  // longer than load balancers keep connections
		MaxHeaderBytes:               12 << 10,         // net/http adds 4 KiB
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(listener) }()
	s.log.Info("listening", "addr", listener.Addr().String())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	s.log.Info("shutting down")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := hs.Shutdown(ctx); err != nil {
		s.log.Warn("requests aborted", "reason", err)
		hs.Close()
	}
	return nil
}

// A config holds the settings.
type config struct {
	jwtSecret       secret
	previousSecrets []secret
	issuer          string
	accessMinutes   int
	refreshDays     int
	addr            string
	adminEmail      string
	adminPassword   secret
	argon2          phc.Params
	hashes          int // maximum of concurrent hashes
	throttle        bool
	storePath       string   // path of the file; empty for other stores
	storeURLs       []string // endpoints of etcd; nil for other stores
	storePrefix     string
	storeUser       string
	storePassword   secret
	origins         []string // origins of pages that may read responses
	trustedProxies  []netip.Prefix
	docs            bool
	logFormat       string
}

// settings lists the variables in the order of the README.
func (cfg *config) settings() []settings.Setting {
	return []settings.Setting{
		{Name: "APP_JWT_SECRET", Parse: cfg.parseJWTSecret, Secret: true},
		{Name: "APP_JWT_PREVIOUS_SECRETS", Parse: cfg.parsePreviousSecrets},
		{Name: "APP_JWT_ALGORITHM", Default: "HS256", Parse: settings.OneOf(new(string), "HS256")},
		{Name: "APP_ISSUER", Default: "jwt-auth-api", Parse: settings.Text(&cfg.issuer, maxText)},
		{Name: "APP_ACCESS_TTL_MINUTES", Default: "15", Parse: settings.Int(&cfg.accessMinutes, 1, 365*24*60)},
		{Name: "APP_REFRESH_TTL_DAYS", Default: "7", Parse: settings.Int(&cfg.refreshDays, 1, 3650)},
		{Name: "APP_ADDR", Default: "127.0.0.1:8000", Parse: cfg.parseAddr},
		{Name: "APP_ADMIN_EMAIL", Default: "admin@example.com", Parse: cfg.parseAdminEmail, AllowEmpty: true},
		{Name: "APP_ADMIN_PASSWORD", Default: documentedPassword, Parse: cfg.parseAdminPassword, Secret: true},
		{Name: "APP_ARGON2", Default: "m=65536,t=3,p=4", Parse: cfg.parseArgon2},
		{Name: "APP_STORE", Default: "memory", Parse: cfg.parseStore},
		{Name: "APP_STORE_PREFIX", Default: "jwt-auth-api/", Parse: settings.Text(&cfg.storePrefix, maxText)},
		{Name: "APP_STORE_USER", Parse: settings.Text(&cfg.storeUser, maxText)},
		{Name: "APP_STORE_PASSWORD", Parse: cfg.parseStorePassword, Secret: true},
		{Name: "APP_CORS_ORIGINS", Parse: cfg.parseOrigins},
		{Name: "APP_THROTTLE", Default: "on", Parse: settings.Switch(&cfg.throttle)},
		{Name: "APP_TRUSTED_PROXIES", Parse: settings.Networks(&cfg.trustedProxies)},
		{Name: "APP_DOCS", Default: "on", Parse: settings.Switch(&cfg.docs)},
		{Name: "APP_LOG", Default: "text", Parse: settings.OneOf(&cfg.logFormat, "text", "json")},
	}
}

// loadConfig loads the settings. The error has one line for each invalid setting.
func loadConfig(environ []string) (cfg config, warnings []string, err error) {
	warnings, err = settings.Load(environ, "APP_", cfg.settings())
	if err != nil {
		return cfg, warnings, err
	}
	if cfg.jwtSecret.reveal() == documentedSecret {
		warnings = append(warnings, "APP_JWT_SECRET: documented value, with which anyone can sign tokens")
	}
	return cfg, warnings, cfg.checkExposure()
}

const (
	maxText            = 256 // bytes; tokens with a longer issuer would be too long to verify
	minSecret          = 32  // bytes; RFC 7518 section 3.2 requires the size of the hash
	howToMakeSecret    = "generate one with: openssl rand -hex 32"
	documentedPassword = "admin-password"
	documentedSecret   = "change-me-to-a-long-random-string-at-least-32-bytes-please"
)

func (cfg *config) parseJWTSecret(text string) error {
	cfg.jwtSecret = newSecret(text)
	if text == "" {
		return errors.New("missing; " + howToMakeSecret)
	}
	return checkSecretLength(text)
}

func checkSecretLength(text string) error {
	if len(text) < minSecret {
		return fmt.Errorf("must be at least %d bytes, got %d; %s", minSecret, len(text), howToMakeSecret)
	}
	return nil
}

func (cfg *config) parsePreviousSecrets(text string) error {
	for i, item := range settings.List(text) {
		if err := checkSecretLength(item); err != nil {
			return fmt.Errorf("secret %d: %w", i+1, err)
		}
		cfg.previousSecrets = append(cfg.previousSecrets, newSecret(item))
	}
	return nil
}

func (cfg *config) parseAddr(text string) error {
	cfg.addr = text
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return errors.New("must be host:port")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("port must be 0 to 65535")
	}
	return nil
}

func (cfg *config) parseStore(text string) error {
	kind, where, _ := strings.Cut(text, ":")
	switch kind {
	case "file":
		cfg.storePath = where
	case "etcd":
		cfg.storeURLs = settings.List(where)
	}
	if text != "memory" && cfg.storePath == "" && cfg.storeURLs == nil {
		return errors.New("must be memory, file:PATH or etcd:URL,URL")
	}
	for i, item := range cfg.storeURLs {
		u, err := url.Parse(item)
		if err != nil || u.Host == "" || item != "http://"+u.Host && item != "https://"+u.Host {
			return fmt.Errorf("URL %d: must look like https://10.0.0.1:2379", i+1)
		}
	}
	return nil
}

func (cfg *config) parseStorePassword(text string) error {
	cfg.storePassword = newSecret(text)
	return settings.Text(&text, maxText)(text)
}

// parseOrigins reads a list of origins as browsers send them (RFC 6454 section 6.2), or *.
func (cfg *config) parseOrigins(text string) error {
	for i, item := range settings.List(text) {
		u, err := url.Parse(item)
		if item != "*" && (err != nil || u.Scheme == "" || u.Host == "" || strings.Contains(u.Host, "*") ||
			item != (&url.URL{Scheme: u.Scheme, Host: u.Host}).String() || // String escapes a domain in Unicode.
			slices.Contains([]string{"http:80", "https:443"}, u.Scheme+":"+u.Port())) {
			return fmt.Errorf("origin %d: must look like https://app.example.com", i+1)
		}
		cfg.origins = append(cfg.origins, strings.ToLower(item))
	}
	return nil
}

func (cfg *config) parseAdminEmail(text string) (err error) {
	if text != "" {
		cfg.adminEmail, err = email.Parse(text)
	}
	return err
}

func (cfg *config) parseAdminPassword(text string) error {
	cfg.adminPassword = newSecret(text)
	if n := utf8.RuneCountInString(text); n < minPassword || n > maxPassword || !utf8.ValidString(text) {
		return fmt.Errorf("must be %d to %d characters of UTF-8, got %d", minPassword, maxPassword, n)
	}
	return nil
}

// owaspMinimum has the lowest parameters that OWASP's Password Storage Cheat Sheet allows.
var owaspMinimum = phc.Params{Memory: 19456, Time: 2, Threads: 1}

// peakFactor is the peak memory of a flood of logins as a multiple of the memory of the hashes
// that run concurrently, because the garbage collector frees earlier ones late.
const peakFactor = 3

func (cfg *config) parseArgon2(text string) (err error) {
	if cfg.argon2, err = phc.ParseParams(text); err != nil {
		return err
	}
	if cfg.argon2.Memory < owaspMinimum.Memory || cfg.argon2.Time < owaspMinimum.Time {
		return fmt.Errorf("must be at least %s", owaspMinimum)
	}
	perHash := uint64(cfg.argon2.Memory) << 10 * peakFactor
	have := availableMemory(os.DirFS("/"))
	if perHash > have {
		return fmt.Errorf("needs %d MiB of memory, got %d", perHash>>20, have>>20)
	}
	cfg.hashes = max(1, min(runtime.GOMAXPROCS(0)/int(cfg.argon2.Threads), int(have/perHash)))
	return nil
}

// availableMemory returns the memory in bytes that the process may use: the minimum of GOMEMLIMIT
// and, on Linux, the memory of the machine and the limits of the control group and its ancestors.
func availableMemory(root fs.FS) uint64 {
	have := uint64(debug.SetMemoryLimit(-1))
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	_, group, _ := strings.Cut("\n"+string(groups), "\n0::") // the group in cgroup v2
	group, _, _ = strings.Cut(group, "\n")
	for dir := path.Join("sys/fs/cgroup", path.Join("/", group)); dir != "sys/fs"; dir = path.Dir(dir) {
		limit, _ := fs.ReadFile(root, dir+"/memory.max")
		if n, err := strconv.ParseUint(strings.TrimSpace(string(limit)), 10, 64); err == nil {
			have = min(have, n)
		}
	}
	machine, _ := fs.ReadFile(root, "proc/meminfo")
	var kib uint64
	if n, _ := fmt.Sscanf(string(machine), "MemTotal: %d kB", &kib); n == 1 {
		have = min(have, kib<<10)
	}
	return have
}

// checkExposure rejects the documented password and secret if other machines can connect.
func (cfg *config) checkExposure() error {
	host, _, _ := net.SplitHostPort(cfg.addr)
	ip, err := netip.ParseAddr(host)
	if host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	var errs []error
	reject := func(name, documented string, secrets ...secret) {
		for _, s := range secrets {
			if strings.Trim(s.reveal(), " \t\r\n\"'") == documented {
				const msg = "%s: the documented value is only for loopback; set another to listen on %s"
				errs = append(errs, fmt.Errorf(msg, name, cfg.addr))
			}
		}
	}
	reject("APP_JWT_SECRET", documentedSecret, cfg.jwtSecret)
	reject("APP_JWT_PREVIOUS_SECRETS", documentedSecret, cfg.previousSecrets...)
	if cfg.adminEmail != "" {
		reject("APP_ADMIN_PASSWORD", documentedPassword, cfg.adminPassword)
	}
	return errors.Join(errs...)
}
