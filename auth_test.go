package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"jwt-auth-api/internal/admission"
	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/logwriter"
	"jwt-auth-api/internal/phc"
	"jwt-auth-api/internal/testfile"
	"jwt-auth-api/internal/throttle"
)

// These tests check the parts one by one; e2e_test.go checks the service over HTTP. A token that is
// rejected is signed with the right key and valid in all other respects, so that the check under
// test is what fails.

const (
	partsSecret = "the secret of the unit tests, and of nothing else"
	oldSecret   = "last year's secret, whose tokens are still valid"
	plainHeader = `{"alg":"HS256","typ":"JWT"}`
	plainClaims = `{"sub":"u1","scopes":["me"],"type":"access","jti":"j1","iat":1000,"nbf":1001.5,"exp":2000,` +
		`"iss":"jwt-auth-api","sid":"s1","gen":7}`
)

// cheap has the lowest parameters of argon2. A hash takes microseconds.
var cheap = phc.Params{Memory: 8, Time: 1, Threads: 1}

var loopback = netip.MustParseAddr("127.0.0.1")

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// signed appends the MAC to the first two segments of a token, without checking them. It shares no
// code with the codec.
func signed(secret, input string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, input)
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func forge(header, payload string) string { return signed(partsSecret, b64(header)+"."+b64(payload)) }

// tokensAt returns tokens with a fixed clock.
func tokensAt(now time.Time, secrets ...string) *tokens {
	t := &tokens{issuer: "jwt-auth-api", accessTTL: 15 * time.Minute, refreshTTL: 7 * 24 * time.Hour}
	t.now = func() time.Time { return now }
	for _, secret := range secrets {
		t.keys = append(t.keys, newHMACKey([]byte(secret)))
	}
	return t
}

// base64Position is the end of an error of encoding/base64.
var base64Position = regexp.MustCompile(` at input byte \d+$`)

// errText returns the text of an error, or "accepted".
func errText(err error) string {
	if err == nil {
		return "accepted"
	}
	return base64Position.ReplaceAllString(err.Error(), "")
}

// equal compares a value with the one that the test wants.
func equal[T comparable](t testing.TB, name string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", name, got, want)
	}
}

// A dataRow is a row of a file of testdata. Its input is a string, or a JSON text as written.
type dataRow struct {
	Name  string
	Input json.RawMessage
	Want  string
}

func (row dataRow) input() string {
	text := string(row.Input)
	json.Unmarshal(row.Input, &text) // Only a string changes text.
	return text
}

// checkRows compares the error of check, for the input of each row of a file, with the row's want.
func checkRows(t *testing.T, file string, check func(input string) error) {
	t.Helper()
	for _, row := range testfile.Read[[]dataRow](t, file) {
		equal(t, row.Name, errText(check(row.input())), row.Want)
	}
}

// A jwsVector is a published token.
type jwsVector struct {
	ID, Source, Layer, Key, Token, Comment string
	Expect, Reason                         string // accept, or reject and why
	Now                                    int64  // of the layer time, in seconds
}

// check checks the token up to the layer of the vector.
func (v jwsVector) check() error {
	secret, err := base64.RawURLEncoding.DecodeString(v.Key)
	if v.Layer == "key" {
		err = new(config).parseJWTSecret(string(secret))
	}
	if err != nil {
		return err
	}
	payload, err := newHMACKey(secret).verify(v.Token)
	if err != nil || v.Layer != "time" && v.Layer != "claims" {
		return err
	}
	c, err := parseClaims(payload)
	if err == nil && v.Layer == "time" {
		c.subject = "u1" // The vectors lack one.
		err = c.validate(time.Unix(v.Now, 0), c.issuer, c.typ)
	}
	return err
}

// TestPublishedTokens begins with the example of RFC 7515 appendix A.1. It compares the reasons
// too: a token rejected for another reason would hide a missing check.
func TestPublishedTokens(t *testing.T) {
	file := testfile.Read[struct {
		About    string
		Licences map[string]string
		Vectors  []jwsVector
	}](t, "jws_hs256.json")
	equal(t, "vectors", len(file.Vectors), 75)
	for _, v := range file.Vectors {
		want := map[string]string{"accept": "accepted", "reject": v.Reason}[v.Expect]
		equal(t, v.ID+", "+v.Comment, errText(v.check()), want)
	}
}

// TestTokensOfTheOriginal verifies the pair that PyJWT made for the original service, and makes the
// same bytes, with a session after them.
func TestTokensOfTheOriginal(t *testing.T) {
	file := testfile.Read[struct {
		About, Secret string
		Tokens        []struct{ Type, Token, Claims string }
	}](t, "tokens.json")
	equal(t, "tokens", len(file.Tokens), 2)
	for _, token := range file.Tokens {
		c, _ := parseClaims(token.Claims)
		equal(t, token.Type, newHMACKey([]byte(file.Secret)).sign([]byte(token.Claims)), token.Token)
		c.session, c.gen = "s1", 7
		want := map[string]string{"access": `,"sid":"s1"}`, "refresh": `,"sid":"s1","gen":7}`}[token.Type]
		equal(t, token.Type, string(c.appendJSON(nil)), strings.TrimSuffix(token.Claims, "}")+want)
		iat, exp := time.Unix(int64(c.issuedAt), 0), time.Unix(int64(c.expiry), 0)
		for now, want := range map[time.Time]string{
			iat.Add(-60_001 * time.Millisecond): "iat: token issued in the future",
			iat.Add(-60 * time.Second):          "accepted",
			exp.Add(-time.Millisecond):          "accepted",
			exp:                                 "exp: missing, or token expired",
		} {
			_, err := tokensAt(now, file.Secret).verify(token.Token, token.Type)
			equal(t, fmt.Sprint(token.Type, " token after ", now.Sub(iat)), errText(err), want)
		}
	}
}

func TestTokenHeaders(t *testing.T) {
	tokens := tokensAt(time.Unix(1500, 0), partsSecret)
	checkRows(t, "headers.json", func(header string) error {
		_, err := tokens.verify(forge(header, plainClaims), accessToken)
		return err
	})
}

// TestTokenClaims verifies access tokens at 1500 seconds.
func TestTokenClaims(t *testing.T) {
	tokens := tokensAt(time.Unix(1500, 0), partsSecret)
	checkRows(t, "claims.json", func(payload string) error {
		_, err := tokens.verify(forge(plainHeader, payload), accessToken)
		return err
	})
	got, err := tokens.verify(forge(plainHeader, plainClaims), accessToken)
	want := claims{subject: "u1", scopes: []string{"me"}, typ: "access", id: "j1", issuedAt: 1000, notBefore: 1001.5,
		expiry: 2000, issuer: "jwt-auth-api", session: "s1", gen: 7}
	if !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("got %+v and %v, want %+v", got, err, want)
	}
}

func TestTokenSegments(t *testing.T) {
	key := newHMACKey([]byte(partsSecret))
	checkRows(t, "segments.json", func(input string) error {
		payload, err := key.verify(signed(partsSecret, input))
		if _, segment, _ := strings.Cut(input, "."); err == nil && b64(payload) != segment || err != nil && payload != "" {
			t.Errorf("%q: got payload %q and %v, want the payload or an error", input, payload, err)
		}
		return err
	})
}

// TestTokenAltered inserts, replaces, deletes and cuts off each character of a token. The altered
// signatures include those with stray bits, padding, white space, escapes and standard base64. The
// error shows that nothing is decoded before the signature is valid.
func TestTokenAltered(t *testing.T) {
	key, token := newHMACKey([]byte(partsSecret)), forge(plainHeader, plainClaims)
	const characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=.%~ \t\r\n\x00é"
	for i := range token {
		for _, c := range append(strings.Split(characters, ""), "") {
			for _, altered := range []string{token[:i] + c + token[i:], token[:i] + c + token[i+1:], token[:i+1] + c} {
				want := errSignature
				if strings.Count(altered, ".") != 2 {
					want = errSegments
				}
				if payload, err := key.verify(altered); altered != token && (err != want || payload != "") {
					t.Errorf("%q: got payload %q and %v, want %v", altered, payload, err, want)
				}
			}
		}
	}
}

// TestTokenLength has payloads whose tokens are at the bound and over it.
func TestTokenLength(t *testing.T) {
	for n, want := range map[int]string{3011: "4096 bytes: accepted", 3012: "4097 bytes: token longer than 4096 bytes"} {
		token := forge(plainHeader, strings.Repeat("x", n))
		_, err := newHMACKey([]byte(partsSecret)).verify(token)
		equal(t, "token", fmt.Sprintf("%d bytes: %s", len(token), errText(err)), want)
	}
}

// TestSign compares sign and open with crypto/hmac and encoding/base64, concurrently.
func TestSign(t *testing.T) {
	secret := []byte(partsSecret)
	key := newHMACKey(secret)
	clear(secret) // The key has a copy.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				payload := strings.Repeat(string(rune('a'+i)), n)
				token := key.sign([]byte(payload))
				if got, err := key.verify(token); got != payload || err != nil || token != forge(plainHeader, payload) {
					t.Errorf("got token %s with %q and %v, want payload %q", token, got, err, payload)
				}
			}
		})
	}
	wg.Wait()
}

// TestPreviousKeys rotates a key: the old one verifies and never signs.
func TestPreviousKeys(t *testing.T) {
	tokens := tokensAt(time.Unix(1500, 0), partsSecret, oldSecret)
	good, none, past := b64(plainHeader)+"."+b64(plainClaims), b64(`{"alg":"none"}`)+".e30", b64(plainHeader)+".e30"
	for token, want := range map[string]string{
		signed(partsSecret, good):   "accepted",
		signed(oldSecret, good):     "accepted",
		signed("x"+oldSecret, good): "invalid signature",
		signed(partsSecret, none):   "header: alg: must be HS256",
		signed(oldSecret, none):     "header: alg: must be HS256",
		signed(oldSecret, past):     "exp: missing, or token expired",
	} {
		_, err := tokens.verify(token, accessToken)
		equal(t, token, errText(err), want)
	}
	_, err := newHMACKey([]byte(partsSecret)).verify(tokens.issuePair(user{ID: "u1"}, session{}, "").AccessToken)
	equal(t, "a new token with the current key", err, nil)
}

// TestAppendString writes each character after one that encoding/json would escape without need.
func TestAppendString(t *testing.T) {
	for r := range rune(0x3000) {
		text, back := "<"+string(r), ""
		got := string(appendString([]byte("before"), text))
		plain := r >= ' ' && r <= '~' && r != '"' && r != '\\'
		err := json.Unmarshal([]byte(strings.TrimPrefix(got, "before")), &back)
		if err != nil || back != text || plain && got != `before"`+text+`"` {
			t.Errorf("%q: got %s and %v, want a JSON string after the prefix, without needless escapes", text, got, err)
		}
	}
}

var uuidV4 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// TestIssuePair compares every byte of a payload. The clock has a fraction, the tokens have none.
func TestIssuePair(t *testing.T) {
	tokens := tokensAt(time.Unix(1000, 999_999_999), partsSecret)
	seen := map[string]bool{}
	for list, scopes := range map[string][]string{`["me","admin"]`: {"me", "admin"}, `["me"]`: {"me"}, `[]`: nil} {
		pair := tokens.issuePair(user{ID: "u1", Scopes: scopes}, session{ID: "s1", Gen: 12, Expires: 5000}, "")
		equal(t, "pair", fmt.Sprint(pair.TokenType, pair.ExpiresIn, pair.Scope), "bearer900 <nil>")
		for _, row := range []struct{ token, typ, exp, end string }{
			{pair.AccessToken, "access", "1900", `}`},
			{pair.RefreshToken, "refresh", "5000", `,"gen":12}`},
		} {
			payload, _ := tokens.keys[0].verify(row.token)
			c, err := tokens.verify(row.token, row.typ)
			want := fmt.Sprintf(`{"sub":"u1","scopes":%s,"type":%q,"jti":%q,"iat":1000,"exp":%s,"iss":"jwt-auth-api",`+
				`"sid":"s1"%s`, list, row.typ, c.id, row.exp, row.end)
			if payload != want || err != nil || !uuidV4.MatchString(c.id) || seen[c.id] {
				t.Errorf("got %s and %v, want %s with a new UUID", payload, err, want)
			}
			seen[c.id] = true
		}
	}
	last := tokens.issuePair(user{ID: "u1"}, session{ID: "s1", Expires: 1899}, "") // before the access token would expire
	c, err := tokens.verify(last.AccessToken, accessToken)
	equal(t, "a session that ends first", fmt.Sprint(last.ExpiresIn, c.expiry, err), "899 1899 <nil>")
	for asked, want := range map[string]string{"": `null`, "me admin": `null`, "admin  me admin": `null`, "me": `"me admin"`,
		"me admin x": `"me admin"`, "x y": `"me admin"`} {
		pair := tokens.issuePair(user{ID: "u1", Scopes: []string{"me", "admin"}}, session{}, asked)
		scope, _ := json.Marshal(pair.Scope)
		equal(t, "the scope if the client asked for "+asked, string(scope), want)
	}
	equal(t, "no scope", *tokens.issuePair(user{ID: "u1"}, session{}, "me").Scope, "")
}

// TestUUID checks that each digit takes every value that it can, and that no two are always equal.
func TestUUID(t *testing.T) {
	var digits [36]string // of all UUIDs, by position
	for range 1000 {
		id := newUUID()
		equal(t, id+" is of version 4", uuidV4.MatchString(id), true)
		for i := range digits {
			digits[i] += id[i : i+1]
		}
	}
	for i, values := range digits {
		want := cmp.Or(map[int]int{8: 1, 13: 1, 14: 1, 18: 1, 19: 4, 23: 1}[i], 16) // hyphens, version and variant
		different := slices.Compact(slices.Sorted(slices.Values(strings.Split(values, ""))))
		if len(different) != want || want > 1 && slices.Index(digits[:], values) != i {
			t.Errorf("position %d: got %q, want %d values, in another order than at other positions", i, different, want)
		}
	}
}

// leak returns the spelling in which text contains value, or "".
func leak(text, value string) string {
	for _, spelling := range []string{
		value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), fmt.Sprintf("% x", value),
		strings.Trim(fmt.Sprint([]byte(value)), "[]"), base64.StdEncoding.EncodeToString([]byte(value))[:8],
	} {
		if strings.Contains(text, spelling) {
			return spelling
		}
	}
	return ""
}

// verbs are those of package fmt, with the flags that change what is printed.
var verbs = strings.Fields("%v %+v %#v %s %+s %q %#q %+q %x %#x %X %d %t %b %c %o %U %e %g %p %T %20s %.3s %z")

// printed returns what fmt and log/slog print of v.
func printed(v any) string {
	var out bytes.Buffer
	for _, verb := range verbs {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	for _, format := range []string{"text", "json"} {
		newLogger(format, &out).With("with", v).Info("message", "v", v, slog.Group("group", "v", v))
	}
	return out.String()
}

func TestSecretPrinted(t *testing.T) {
	const value = "hunter2-hunter2"
	s := newSecret(value)
	for _, v := range []any{s, &s, struct{ Secret secret }{s}, struct{ secret secret }{s}, &struct{ secret *secret }{&s},
		[]secret{s}, struct{ secrets []secret }{[]secret{s}}, map[secret]secret{s: s}, struct{ any }{s}, slog.AnyValue(s)} {
		equal(t, fmt.Sprintf("leak of %T", v), leak(printed(v), value), "")
	}
	for want, v := range map[string]any{
		`"********"`:              s,
		`{"Secret":"********"}`:   struct{ Secret secret }{s},
		`["********"]`:            []*secret{&s},
		`{"********":"********"}`: map[secret]secret{s: s},
	} {
		got, _ := json.Marshal(v)
		equal(t, "json", string(got), want)
	}
	got := fmt.Sprintf("%s %v %d %+v %#v %q %x", s, s, s, s, s, s, secret{})
	equal(t, "fmt", got+" "+s.reveal()+(secret{}).reveal(), strings.Repeat("******** ", 7)+value)
}

// TestServerPrinted prints everything that holds secrets.
func TestServerPrinted(t *testing.T) {
	s, cfg := partsServer(t), partsConfig()
	u, _ := s.users.byID(t.Context(), "u1")
	for _, v := range []any{s, s.auth, cfg, &cfg, s.users, u, &u, s.passwords, s.tokens, s.tokens.keys[0]} {
		for _, value := range []secret{cfg.jwtSecret, cfg.adminPassword, u.hash, s.passwords.decoy} {
			equal(t, fmt.Sprintf("leak of %T", v), leak(printed(v), value.reveal()), "")
		}
	}
}

// An argon2Vector is a hash with the verdict on a password.
type argon2Vector struct {
	ID, Encoded, Password, Why string
	Padding                    int    // number of the characters A after Encoded
	Expect, Reason             string // match, mismatch, or refuse and why
	NeedsRehash                bool
}

// TestPublishedHashes computes each hash with its own parameters, mostly the defaults.
func TestPublishedHashes(t *testing.T) {
	file := testfile.Read[struct {
		About   string
		Vectors []argon2Vector
	}](t, "argon2.json")
	equal(t, "vectors", len(file.Vectors), 74)
	p := &passwords{params: phc.Params{Memory: 65536, Time: 3, Threads: 4}}
	for _, v := range file.Vectors {
		t.Run(v.ID, func(t *testing.T) {
			t.Parallel()
			want := map[string]string{"match": "accepted", "mismatch": "wrong password", "refuse": v.Reason}[v.Expect]
			encoded := newSecret(v.Encoded + strings.Repeat("A", v.Padding))
			equal(t, v.Why, errText(p.verify(v.Password, encoded)), want)
			equal(t, "needsRehash, "+v.Why, p.needsRehash(encoded), v.NeedsRehash || v.Expect == "refuse")
		})
	}
}

func TestHashAndVerify(t *testing.T) {
	p := newPasswords(phc.Params{Memory: 32, Time: 2, Threads: 3}, 1)
	form := regexp.MustCompile(`^\$argon2id\$v=19\$m=32,t=2,p=3\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`)
	long := strings.Repeat("𝄞", 128)
	list := []string{"", "secret123", "Secret123", "sécret123", "se\u0301cret123", "a\x00b", "a", long, long[1:]}
	for _, password := range list {
		first, second := p.hash(password), p.hash(password)
		if !form.MatchString(first.reveal()) || first.reveal() == second.reveal() || p.needsRehash(first) {
			t.Errorf("%q: got %s and %s, want current hashes with two salts", password, first.reveal(), second.reveal())
		}
		for _, other := range list {
			want := map[bool]error{true: nil, false: errMismatch}[other == password]
			equal(t, other+" and the hash of "+password, p.verify(other, first), want)
		}
	}
	if other := newPasswords(p.params, 1); p.needsRehash(p.decoy) || p.decoy.reveal() == other.decoy.reveal() {
		t.Errorf("got the decoy %s, want a random one that costs as much as a hash", p.decoy.reveal())
	}
}

// freeSlots returns how many slots of p are free.
func freeSlots(p *passwords) (n int) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // There is no wait for a slot that is taken.
	for release, err := p.Acquire(ctx); err == nil; release, err = p.Acquire(ctx) {
		defer release()
		n++
	}
	return n
}

func partsConfig() config {
	return config{
		jwtSecret: newSecret(partsSecret), issuer: "jwt-auth-api", accessMinutes: 15, refreshDays: 7, throttle: true,
		adminEmail: "admin@example.com", adminPassword: newSecret("admin-password"), argon2: cheap, hashes: 1,
	}
}

// serverOf returns a server whose clock is fixed at 1500 seconds.
func serverOf(t testing.TB, cfg config) *server {
	t.Helper()
	clock := func() time.Time { return time.Unix(1500, 0) }
	s, err := newServer(t.Context(), cfg, clock, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sessionOf returns the session of a user of partsServer. It expires in a second.
func sessionOf(id string) session {
	return session{ID: "s-" + id, Gen: 3, Created: 1000, Rotated: 1440, Expires: 1501}
}

// partsServer returns a server with an admin and four more users. The hash of the user broken is
// none.
func partsServer(t testing.TB) *server {
	s := serverOf(t, partsConfig())
	hash := s.passwords.hash("secret123")
	for _, u := range []user{
		{ID: "u1", Email: "User@example.com", Name: "User", Scopes: []string{"me"}, hash: hash,
			Sessions: []session{{ID: "expired", Expires: 1500}, sessionOf("u1")}},
		{ID: "since", Email: "since@example.com", hash: hash, Since: 1200},
		{ID: "disabled", Email: "disabled@example.com", hash: hash, Disabled: true},
		{ID: "broken", Email: "broken@example.com", hash: newSecret("secret123")},
	} {
		s.users.add(t.Context(), u)
	}
	mustUpdate(t, s, "admin-0", func(u *user) { u.Sessions = []session{sessionOf("admin-0")} })
	return s
}

// mustUpdate changes a record and returns it.
func mustUpdate(t testing.TB, s *server, id string, modify func(*user)) user {
	t.Helper()
	u, err := s.users.update(t.Context(), id, func(u *user) error { modify(u); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return u
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// meanwhile makes a change while the salt of a new hash is read, after a number of other reads of
// random bytes. The caller calls restore.
func meanwhile(reads int, change func()) (restore func()) {
	reader := rand.Reader
	rand.Reader = readerFunc(func(b []byte) (int, error) {
		if reads--; reads == -1 {
			change()
		}
		return reader.Read(b)
	})
	return func() { rand.Reader = reader }
}

// attempts makes three attempts after nine failures, with one more failure before the last one. The
// errors show whether the first one was a failure, a success that cleared the nine, or neither.
func attempts(s *server, account string, attempt func() error) string {
	s.throttle = throttle.New(s.tokens.now)
	for range 9 {
		s.throttle.Failed(account, loopback)
	}
	first, second := attempt(), attempt()
	s.throttle.Failed(account, loopback)
	return errText(first) + "; " + errText(second) + "; " + errText(attempt())
}

// TestLoginPasswords makes the password of the decoy known.
func TestLoginPasswords(t *testing.T) {
	s := partsServer(t)
	s.passwords.decoy = s.passwords.hash("decoy-password")
	then := map[string]string{
		"accepted": "accepted; accepted",
		"incorrect email or password: wrong password": "too many attempts; too many attempts",
		"incorrect email or password: unknown user":   "too many attempts; too many attempts",
		"account disabled":                            "account disabled; too many attempts",
		"password hash: must be argon2id, version 19": "password hash: must be argon2id, version 19; too many attempts",
	}
	checkRows(t, "passwords.json", func(input string) error {
		address, password, _ := strings.Cut(input, " ")
		got := attempts(s, email.Key(address), func() error {
			u, _, err := s.auth.login(t.Context(), loopback, address, password, "")
			if err == nil && !strings.EqualFold(u.Email, address) || err != nil && u.ID != "" {
				t.Errorf("%s: got user %q and %v, want the user or an error", input, u.ID, err)
			}
			return err
		})
		first, rest, _ := strings.Cut(got, "; ")
		equal(t, input+" after "+first, rest, then[first])
		equal(t, input+", free slots", freeSlots(s.passwords), 1)
		return errors.New(first)
	})
}

// TestLogin begins sessions of u1 with several User-Agents.
func TestLogin(t *testing.T) {
	s, long := partsServer(t), strings.Repeat("𝄞", 199)
	for agent, kept := range map[string]string{"": "", long + "ab": long + "a", long + "b": long + "b",
		"a\xff\xfeb\xc3": "a\uFFFDb\uFFFD"} {
		former, _ := s.users.byID(t.Context(), "u1")
		u, begun, err := s.auth.login(t.Context(), loopback, "user@example.com", "secret123", agent)
		want := session{ID: begun.ID, UserAgent: kept, Created: 1500, Rotated: 1500, Expires: 1500 + 7*24*60*60}
		stored, _ := s.users.byID(t.Context(), "u1")
		if err != nil || begun != want || !uuidV4.MatchString(begun.ID) || stored.Version != former.Version+1 ||
			stored.Sessions[len(stored.Sessions)-1] != want || !reflect.DeepEqual(u.Sessions, stored.Sessions) {
			t.Errorf("got %+v, %v and the record %+v, want the session %+v in a new version", begun, err, stored, want)
		}
	}
}

// TestStoreFails has an error that is no wrong password: neither a login nor a failure or a
// success.
func TestStoreFails(t *testing.T) {
	s := partsServer(t)
	s.users.store = brokenStore{s.users.store, false}
	got := attempts(s, "account", func() error {
		_, err := s.checkPassword(t.Context(), loopback, "", "account", "x", "x", nil)
		return err
	})
	equal(t, "attempts", got, "busy, try again; busy, try again; too many attempts")
}

// TestLoginCost measures the memory of a hash, which is also its time: an attacker must not learn
// from it whether an email is known.
func TestLoginCost(t *testing.T) {
	s := partsServer(t)
	s.passwords = newPasswords(phc.Params{Memory: 4096, Time: 1, Threads: 1}, 1)
	mustUpdate(t, s, "u1", func(u *user) { u.hash = s.passwords.hash("secret123") })
	for _, login := range []string{"user@example.com secret123", "user@example.com secret124", "nobody@example.com x"} {
		address, password, _ := strings.Cut(login, " ")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.auth.login(t.Context(), loopback, address, password, "")
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got < 4<<20 || got > 6<<20 {
			t.Errorf("%s: got %d bytes allocated, want the 4 MiB of one hash", login, got)
		}
	}
}

// TestThrottledAttempts makes forty attempts on a known and on an unknown email while they wait for
// one slot. Ten are checked. Later ones are rejected before they wait for a slot.
func TestThrottledAttempts(t *testing.T) {
	for _, address := range []string{"user@example.com", "nobody@example.com"} {
		synctest.Test(t, func(t *testing.T) {
			s := partsServer(t)
			login := func(client, address string) error {
				_, _, err := s.auth.login(t.Context(), netip.MustParseAddr(client), address, "secret124", "")
				return err
			}
			release, _ := s.passwords.Acquire(t.Context())
			errs := make(chan error, 40)
			for range cap(errs) {
				go func() { errs <- login("127.0.0.1", address) }()
			}
			synctest.Wait()
			release()
			got := map[bool]int{}
			for range cap(errs) {
				got[errors.Is(<-errs, errBadCredentials)]++
			}
			equal(t, address+", attempts checked and throttled", [2]int{got[true], got[false]}, [2]int{10, 30})
			s.passwords = newPasswords(cheap, 0) // always busy
			for client, want := range map[string]string{"127.0.0.1": "too many attempts", "192.0.2.1": "busy, try again"} {
				equal(t, address+" and "+client, errText(login(client, strings.ToUpper(address))), want)
			}
		})
	}
}

// TestRehash stores a hash with other parameters, which only a successful login replaces, in the
// write that begins the session.
func TestRehash(t *testing.T) {
	s := partsServer(t)
	old := newPasswords(phc.Params{Memory: 16, Time: 1, Threads: 1}, 1).hash("secret123")
	mustUpdate(t, s, "u1", func(u *user) { u.hash = old })
	former, _ := s.users.byID(t.Context(), "u1")
	for _, row := range [][2]string{{"secret124", "0 true"}, {"secret123", "1 false"}, {"secret123", "1 false"}} {
		_, _, err := s.auth.login(t.Context(), loopback, "user@example.com", row[0], "")
		u, _ := s.users.byID(t.Context(), "u1")
		got := fmt.Sprint(u.Version-former.Version, s.passwords.needsRehash(u.hash))
		equal(t, row[0], got, row[1])
		equal(t, row[0]+", the hash", s.passwords.verify("secret123", u.hash), nil)
		equal(t, row[0]+", the hash replaced", u.hash != former.hash, s.passwords.needsRehash(former.hash) && err == nil)
		former = u
	}
}

// TestLoginMeanwhile changes the record of a user between the check of the password and the write.
func TestLoginMeanwhile(t *testing.T) {
	old := newPasswords(phc.Params{Memory: 16, Time: 1, Threads: 1}, 1)
	other, same := old.hash("secret124"), old.hash("secret123")
	for _, row := range []struct {
		name   string
		modify func(*user)
		want   string
	}{
		{"a new hash of the password", func(u *user) { u.hash = same }, "accepted"},
		{"a new password", func(u *user) { u.hash = other }, "incorrect email or password: wrong password"},
		{"disabled", func(u *user) { u.Disabled = true }, "account disabled"},
		{"deleted", func(u *user) { u.Deleted = true }, "incorrect email or password: unknown user"},
	} {
		s := partsServer(t)
		mustUpdate(t, s, "u1", func(u *user) { u.hash = old.hash("secret123") })
		restore := meanwhile(1, func() { mustUpdate(t, s, "u1", row.modify) }) // The id of the session is read first.
		_, begun, err := s.auth.login(t.Context(), loopback, "user@example.com", "secret123", "")
		restore()
		u, _ := s.users.byID(t.Context(), "u1")
		equal(t, row.name, errText(err), row.want)
		equal(t, row.name+", a session", u.sessionIndex(begun.ID, 1500) >= 0, row.want == "accepted")
	}
}

// TestRegister registers with a free and with a full queue.
func TestRegister(t *testing.T) {
	s := partsServer(t)
	register := func(id, address string) string {
		_, err := s.auth.register(t.Context(), user{ID: id, Email: address}, "secret123", "curl")
		return errText(err)
	}
	equal(t, "a new email", register("new", "new@example.com"), "accepted")
	u, err := s.users.byID(t.Context(), "new")
	equal(t, "the record", fmt.Sprint(err, s.passwords.verify("secret123", u.hash), len(u.Sessions), u.Sessions[0].UserAgent),
		"<nil> <nil> 1curl")
	restore := meanwhile(0, func() { s.users.add(t.Context(), user{ID: "early", Email: "LATE@example.com"}) })
	equal(t, "an email taken meanwhile", register("late", "late@example.com"), "email already registered")
	restore()
	equal(t, "free slots", freeSlots(s.passwords), 1)
	s.passwords = newPasswords(cheap, 0) // always busy
	equal(t, "a taken email", register("x", "new@EXAMPLE.com"), "email already registered")
	equal(t, "a full queue", register("x", "x@example.com"), "busy, try again")
}

// callerOf returns the identity of u1 with a token of a session, or with one of the original.
func callerOf(s *server, session string) identity {
	u, _ := s.users.byID(context.Background(), "u1")
	return identity{u, claims{subject: "u1", session: session, issuedAt: 1000}}
}

func TestChangePassword(t *testing.T) {
	for _, row := range []struct{ name, session, current, want, after string }{
		{"the right password", "s-u1", "secret123", "accepted", "accepted; accepted"},
		{"a wrong password", "s-u1", "secret124", "incorrect password: incorrect email or password: wrong password",
			"too many attempts; too many attempts"},
		{"a session that has ended", "expired", "secret123", "Could not validate credentials",
			"Could not validate credentials; too many attempts"},
	} {
		s := partsServer(t)
		got := attempts(s, "user@example.com", func() error {
			return s.changePassword(t.Context(), loopback, callerOf(s, row.session), row.current, "secret123")
		})
		equal(t, row.name, got, row.want+"; "+row.after)
	}
	s := partsServer(t)
	id := callerOf(s, "s-u1")
	for i, want := range []error{nil, errIncorrectPassword, nil, errUnknownUser} { // The user is deleted in the end.
		mustUpdate(t, s, "u1", func(u *user) { u.Deleted = i == 3 })
		err := s.changePassword(t.Context(), loopback, id, fmt.Sprint("secret", 123+i/2), "secret124")
		equal(t, fmt.Sprint("change ", i, ": ", err), errors.Is(err, want), true)
	}
}

// withTokens replaces each {ID SCOPE...} by an access token, each {refresh ID} by a refresh token,
// both of the user's session, and each object of claims by a token with them.
func withTokens(s *server, text string) string {
	return regexp.MustCompile(`\{[^}]*\}`).ReplaceAllStringFunc(text, func(name string) string {
		if strings.HasPrefix(name, `{"`) {
			return forge(plainHeader, name)
		}
		id, scopes, _ := strings.Cut(strings.Trim(name, "{}"), " ")
		if id == "refresh" {
			return s.tokens.issuePair(user{ID: scopes}, sessionOf(scopes), "").RefreshToken
		}
		return s.tokens.issuePair(user{ID: id, Scopes: strings.Fields(scopes)}, sessionOf(id), "").AccessToken
	})
}

// outcome returns the verdict of a refresh and the generation, or the error.
func outcome(current session, v verdict, err error) string {
	if err != nil {
		return errText(err)
	}
	return []string{"rotate", "retry", "forgive", "reuse"}[v] + " " + strconv.FormatInt(current.Gen, 10)
}

// TestRefreshTokens has refresh tokens, most of them of u1. The generation of its session is 3
// since 60 seconds.
func TestRefreshTokens(t *testing.T) {
	checkRows(t, "refresh.json", func(input string) error {
		s := partsServer(t)
		u, current, v, err := s.auth.refresh(t.Context(), withTokens(s, input), "")
		equal(t, input+", errInvalidRefresh", errors.Is(err, errInvalidRefresh), strings.HasPrefix(errText(err), "invalid"))
		stored, _ := s.users.byID(t.Context(), u.ID)
		equal(t, input+", the session is that of the record", slices.Contains(stored.Sessions, current), err == nil)
		return errors.New(outcome(current, v, err))
	})
}

// TestJudge has the rules of the contract with both neighbours of each bound. An input is the
// number of generations that the token is behind, and the seconds since the session was rotated and
// forgiven.
func TestJudge(t *testing.T) {
	checkRows(t, "judge.json", func(input string) error {
		const now = 1_000_000
		var behind, rotated, forgiven int64
		fmt.Sscan(input, &behind, &rotated, &forgiven)
		s := session{Gen: 10, Rotated: now - rotated}
		if forgiven >= 0 { // -1 is never
			s.Forgiven = now - forgiven
		}
		return errors.New(outcome(s, s.judge(s.Gen-behind, now), nil))
	})
}

// TestRefreshStored uses tokens of session b, which was rotated at 1000 seconds. A row wants the
// verdict, the number of writes and the user, and the sessions of the record.
func TestRefreshStored(t *testing.T) {
	const week = 7 * 24 * 60 * 60
	a, c := session{ID: "a", Gen: 5, Expires: 1e9}, session{ID: "c", Gen: 5, Expires: 1e9}
	b := session{"b", "curl/8", 5, 100, 1000, 0, 1000 + week, false}
	long, adopted := session{"b", "", 5, 100, 1000, 0, 1e9, false}, session{"b", "", 5, 100, 1000, 0, 1e9, true}
	for _, row := range []struct {
		b        session
		gen, now int64
		want     string
		sessions []session
	}{
		{b, 5, 2000, "rotate 6, 1, u1", []session{a, {"b", "curl/8", 6, 100, 2000, 0, 2000 + week, false}, c}},
		{b, 8, 2000, "rotate 9, 1, u1", []session{a, {"b", "curl/8", 9, 100, 2000, 0, 2000 + week, false}, c}},
		{b, 4, 1060, "retry 5, 0, u1", []session{a, b, c}},
		{b, 4, 2000, "forgive 5, 1, u1", []session{a, {"b", "curl/8", 5, 100, 1000, 2000, 1000 + week, false}, c}},
		{b, 3, 1000, "invalid refresh token: refresh token reused, 1, u1", []session{a, c}},
		{b, 5, 1000 + week, "invalid refresh token: the session has ended, 0, ", []session{a, b, c}},
		{long, 5, 2000, "rotate 6, 1, u1", []session{a, {"b", "", 6, 100, 2000, 0, 2000 + week, false}, c}},
		{adopted, 5, 2000, "rotate 6, 1, u1", []session{a, {"b", "", 6, 100, 2000, 0, 1e9, true}, c}},
	} {
		s := partsServer(t)
		b := row.b
		former := mustUpdate(t, s, "u1", func(u *user) { u.Sessions = []session{a, b, c} })
		s.tokens.now = func() time.Time { return time.Unix(row.now, 0) }
		token := s.tokens.issue(former, session{ID: "b", Gen: row.gen}, refreshToken, 1e9)
		u, current, v, err := s.auth.refresh(t.Context(), token, "other")
		stored, _ := s.users.byID(t.Context(), "u1")
		got := fmt.Sprintf("%s, %d, %s", outcome(current, v, err), stored.Version-former.Version-1, u.ID)
		equal(t, fmt.Sprint("generation ", row.gen, " of ", row.b, " at ", row.now), got, row.want)
		equal(t, got+", sessions", fmt.Sprint(stored.Sessions, stored.Since), fmt.Sprint(row.sessions, 0))
		equal(t, got+", copies", fmt.Sprint(former.Sessions), fmt.Sprint([]session{a, b, c}))
	}
}

// TestSessions has scenarios: steps of a time and what happens then. A number is the use of a
// refresh token of that generation, and original the use of one of the original.
func TestSessions(t *testing.T) {
	checkRows(t, "sessions.json", func(steps string) error {
		s, start, current, err := partsServer(t), time.Unix(1_000_000, 0), session{}, error(nil)
		now := start
		s.tokens.now = func() time.Time { return now }
		var outcomes []string
		for step := range strings.FieldsSeq(steps) {
			after, action, _ := strings.Cut(step, ":")
			d, _ := time.ParseDuration(after)
			now = start.Add(d)
			gen, _ := strconv.ParseInt(action, 10, 64)
			token := s.tokens.issue(user{ID: "u1"}, session{ID: current.ID, Gen: gen}, refreshToken, 1<<40)
			switch action {
			case "login":
				_, current, err = s.auth.login(t.Context(), loopback, "user@example.com", "secret123", "")
			case "logout":
				err = s.auth.logout(t.Context(), "u1", current.ID, "local")
			case "original":
				token = withTokens(s, `{"sub":"u1","type":"refresh","jti":"j1","iat":999990,"exp":2000000,"iss":"jwt-auth-api"}`)
				current.ID = "j1"
				fallthrough
			default:
				_, used, v, err := s.auth.refresh(t.Context(), token, "")
				outcomes = append(outcomes, outcome(used, v, err))
				continue
			}
			outcomes = append(outcomes, errText(err))
		}
		return errors.New(strings.Join(outcomes, ", "))
	})
}

// TestRefreshAtOnce uses a token fifty times at once, ten times. It holds the lock until all have
// begun, so all judge the same record. One verdict stands, so the log warns once. All pairs are of
// one generation.
func TestRefreshAtOnce(t *testing.T) {
	s := partsServer(t)
	var begun atomic.Int64 // calls of the clock, two a refresh
	s.tokens.now = func() time.Time { begun.Add(1); return time.Unix(1500, 0) }
	for gen, want := range map[int64]string{
		3: "map[0 rotate 4:1 1 retry 4:49]",
		2: "map[1 retry 3:49 2 forgive 3:1]",
		1: "map[0 invalid refresh token: the session has ended:49 3 invalid refresh token: refresh token reused:1]",
	} {
		for range 10 {
			one := session{ID: "s-u1", Gen: 3, Rotated: 1000, Expires: 9000}
			u := mustUpdate(t, s, "u1", func(u *user) { u.Sessions = []session{one} })
			token, outcomes := s.tokens.issue(u, session{ID: one.ID, Gen: gen}, refreshToken, 9000), make(chan string, 50)
			begun.Store(0)
			s.users.mu.Lock()
			for range cap(outcomes) {
				go func() {
					_, current, v, err := s.auth.refresh(t.Context(), token, "")
					outcomes <- fmt.Sprint(int(v), " ", outcome(current, v, err))
				}()
			}
			for begun.Load() < 100 {
				runtime.Gosched()
			}
			s.users.mu.Unlock()
			got := map[string]int{}
			for range cap(outcomes) {
				got[<-outcomes]++
			}
			equal(t, fmt.Sprint("generation ", gen), fmt.Sprint(got), want)
		}
	}
}

// TestRefreshAgainstLogout races a refresh against a logout, every other time with tokens of the
// original.
func TestRefreshAgainstLogout(t *testing.T) {
	s := partsServer(t)
	original := withTokens(s, `{"sub":"u1","type":"refresh","jti":"j1","iat":1000,"exp":2000,"iss":"jwt-auth-api"}`)
	for i := range 1000 {
		token, own, which := withTokens(s, "{refresh u1}"), "s-u1", "local"
		if i%2 == 0 {
			token, own, which = original, "", "global"
		}
		mustUpdate(t, s, "u1", func(u *user) { u.Since, u.Sessions = 0, []session{sessionOf("u1")} })
		var wg sync.WaitGroup
		wg.Go(func() { s.auth.refresh(t.Context(), token, "") })
		equal(t, "logout", s.auth.logout(t.Context(), "u1", own, which), nil)
		wg.Wait()
		u, _ := s.users.byID(t.Context(), "u1")
		equal(t, "sessions after the logout", sessionIDs(u), "")
	}
}

// join returns the ids of a list.
func join[T any](list []T, id func(T) string) string {
	var ids []string
	for _, v := range list {
		ids = append(ids, id(v))
	}
	return strings.Join(ids, " ")
}

func sessionIDs(u user) string   { return join(u.Sessions, func(s session) string { return s.ID }) }
func userIDs(list []user) string { return join(list, func(u user) string { return u.ID }) }

// TestBegin begins session z of a user with sessions a, b and so on, the time of whose last use
// grows.
func TestBegin(t *testing.T) {
	for _, row := range []struct {
		name   string
		n      int
		modify func(list []session)
		ended  string
		since  int64
	}{
		{"the first", 0, func([]session) {}, "", 0},
		{"19 others", 19, func([]session) {}, "", 0},
		{"20 others", 20, func([]session) {}, "a ", 0},
		{"equally old ones", 20, func(list []session) { list[1].Created = 1000 }, "a ", 0},
		{"the oldest in use", 20, func(list []session) { list[0].Rotated, list[1].Forgiven = 1400, 1400 }, "c ", 0},
		{"one of the original", 20, func(list []session) { list[0].Adopted = true }, "a ", 1500},
		{"an expired one", 20, func(list []session) { list[2].Expires, list[2].Adopted = 1400, true }, "c ", 0},
		{"one in its last second", 19, func(list []session) { list[2].Expires = 1501 }, "", 0},
	} {
		list := make([]session, row.n)
		for i := range list {
			list[i] = session{ID: string(rune('a' + i)), Created: int64(1000 + i), Expires: 9000}
		}
		row.modify(list)
		former := user{Sessions: slices.Clone(list)}
		u := former
		for range 2 { // as after a lost response of the store
			u.beginSession(session{ID: "z", Created: 1500, Expires: 9000})
		}
		want := strings.TrimSpace(strings.Replace(sessionIDs(former)+" z", row.ended, "", 1))
		equal(t, row.name, fmt.Sprint(sessionIDs(u), u.Since), fmt.Sprint(want, row.since))
		equal(t, row.name+", copies", slices.Equal(former.Sessions, list), true)
	}
}

// TestSessionsEnd has a user with the sessions a, b, which began with the token b of the original,
// and c. Session x has expired. An input is an operation, with the session of the caller or the
// claims of a token. A row wants the error, and then the sessions, since and the number of writes.
func TestSessionsEnd(t *testing.T) {
	s := partsServer(t)
	checkRows(t, "ends.json", func(input string) error {
		former := mustUpdate(t, s, "u1", func(u *user) {
			u.Since, u.Sessions = 0, []session{{ID: "a", Expires: 1501}, {ID: "b", Expires: 1501, Adopted: true},
				{ID: "c", Expires: 1501}, {ID: "x", Expires: 1500, Adopted: true}}
		})
		op, arg, _ := strings.Cut(input, " ")
		which, id, _ := strings.Cut(arg, " ")
		var err error
		switch op {
		case "logout":
			err = s.auth.logout(t.Context(), "u1", id, which)
		case "end":
			err = s.endSession(t.Context(), which, id)
		case "password":
			err = s.changePassword(t.Context(), loopback, callerOf(s, arg), "secret123", "secret123")
		case "revoke":
			id, err = s.auth.revoke(t.Context(), withTokens(s, arg))
			err = cmp.Or(err, fmt.Errorf("user %q", id))
		}
		u, _ := s.users.byID(t.Context(), "u1")
		equal(t, input+", copies", sessionIDs(former), "a b c x")
		return fmt.Errorf("%s; %s, %d, %d", errText(err), sessionIDs(u), u.Since, u.Version-former.Version-1)
	})
}

func TestEdit(t *testing.T) {
	from := user{ID: "x", Name: "New", Scopes: []string{"x"}, hash: newSecret("new"), Disabled: true, Version: 9}
	for fields, want := range map[string]string{
		"":                              "u1 Old [me] old false; a 7 1",
		"name":                          "u1 New [me] old false; a 7 1",
		"scopes":                        "u1 Old [x] old false; a 7 1",
		"disabled":                      "u1 Old [me] old true;  1500 1",
		"password":                      "u1 Old [me] new false;  1500 1",
		"name scopes disabled password": "u1 New [x] new true;  1500 1",
	} {
		u := user{ID: "u1", Name: "Old", Scopes: []string{"me"}, hash: newSecret("old"), Since: 7, Version: 1}
		u.Sessions = []session{{ID: "a"}}
		u.edit(from, strings.Fields(fields), 1500)
		got := fmt.Sprintf("%s %s %s %s %t;", u.ID, u.Name, u.Scopes, u.hash.reveal(), u.Disabled)
		equal(t, fields, fmt.Sprint(got, " ", sessionIDs(u), " ", u.Since, " ", u.Version), want)
	}
	enabled := user{Disabled: true, Since: 7}
	enabled.edit(user{}, []string{"disabled"}, 1500)
	equal(t, "enabled again", fmt.Sprint(enabled.Disabled, enabled.Since), "false 7")
}

// TestRequireScope has rows of the required scope and the lines of the Authorization header. The
// user u1 has the scope me, the admin also admin. A row wants the error, or the id of the caller
// and the subject of the token, and then the challenge if there is one.
func TestRequireScope(t *testing.T) {
	s := partsServer(t)
	next := func(_ http.ResponseWriter, r *http.Request) error {
		return fmt.Errorf("%s %s", caller(r.Context()).user.ID, caller(r.Context()).claims.subject)
	}
	checkRows(t, "bearer.json", func(input string) error {
		lines := strings.Split(input, "\n")
		handler := s.requireScope(lines[0], next)
		if lines[0] == "" {
			handler = s.requireUser(next)
		}
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		for _, line := range lines[1:] {
			r.Header.Add("Authorization", withTokens(s, line))
		}
		err := handler(w, r)
		if challenge := w.Header().Get("WWW-Authenticate"); challenge != "" {
			return fmt.Errorf("%w; %s", err, challenge)
		}
		return err
	})
	for _, err := range []error{errUnknownUser, errInvalidToken} { // deleted or logged out meanwhile
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", withTokens(s, "Bearer {u1 me}"))
		got := s.requireUser(func(http.ResponseWriter, *http.Request) error { return err })(w, r)
		equal(t, errText(got), errors.Is(got, errInvalidToken) && errors.Is(got, err), true)
		equal(t, errText(got), w.Header().Get("WWW-Authenticate"), `Bearer error="invalid_token"`)
	}
}

// filled returns users u0, u1 and so on.
func filled(t testing.TB, n int) *users {
	s := newUsers()
	for i := range n {
		id := fmt.Sprintf("u%d", i)
		s.add(t.Context(), user{ID: id, Email: id + "@example.com", Name: "User", Scopes: []string{"me"}})
	}
	return s
}

func TestUsersLookup(t *testing.T) {
	s := filled(t, 5)
	want := user{ID: "u3", Email: "u3@example.com", Name: "User", Scopes: []string{"me"}, Version: 1}
	byID, err := s.byID(t.Context(), "u3")
	byEmail, err2 := s.byEmail(t.Context(), "U3@EXAMPLE.com")
	if err != nil || err2 != nil || !reflect.DeepEqual(byID, want) || !reflect.DeepEqual(byEmail, want) {
		t.Errorf("got %+v, %v, %+v and %v, want %+v", byID, err, byEmail, err2, want)
	}
	err = s.add(t.Context(), user{ID: "u9", Email: "u3@example.COM"})
	equal(t, "a taken email", errText(err), "email already registered")
	for _, key := range []string{"", "u5", "U3", "u9", "u5@example.com"} {
		u, err := s.byID(t.Context(), key)
		u2, err2 := s.byEmail(t.Context(), key)
		if err != errUnknownUser || err2 != errUnknownUser || u.ID+u2.ID != "" {
			t.Errorf("%q: got %+v, %v, %+v and %v, want %v", key, u, err, u2, err2, errUnknownUser)
		}
	}
}

// TestUsersUpdate also modifies what went in and what came out, which are copies.
func TestUsersUpdate(t *testing.T) {
	s := filled(t, 5)
	former := s.records[3]
	rename := func(u *user) error { u.Name, u.hash = "Other", newSecret("h"); return nil }
	if u, err := s.update(t.Context(), "u3", rename); err != nil || u.Name != "Other" || former.Name != "User" {
		t.Errorf("got %+v, %v and the former record %+v, want a changed copy", u, err, former)
	}
	var kept *user
	for name, want := range map[error]string{admission.ErrBusy: " busy, try again", errUnchanged: "Other accepted"} {
		u, err := s.update(t.Context(), "u3", func(u *user) error { u.Name, kept = "failed", u; return name })
		equal(t, "an error", u.Name+" "+errText(err), want)
	}
	page, _ := s.after("", 9)
	page[2].Name, kept.Name = "changed", "changed"
	page, _ = s.after("", 9)
	for i, u := range page {
		want := map[bool]string{true: "Other h 2", false: "User  1"}[i == 3]
		equal(t, u.ID, fmt.Sprint(u.Name, " ", u.hash.reveal(), " ", u.Version), want)
	}
}

// TestUsersApply applies records with versions. A stale one is ignored, as is a stale deletion.
func TestUsersApply(t *testing.T) {
	s := filled(t, 2)
	for _, row := range []struct {
		name string
		user user
		want string
	}{
		{"a new version", user{ID: "u1", Email: "u1@example.com", Name: "b", Version: 3}, "b 3 accepted"},
		{"the same version", user{ID: "u1", Email: "u1@example.com", Name: "c", Version: 3}, "b 3 accepted"},
		{"an old version", user{ID: "u1", Email: "u1@example.com", Name: "d", Version: 2}, "b 3 accepted"},
		{"an old deletion", user{ID: "u1", Version: 3, Deleted: true}, "b 3 accepted"},
		{"a new deletion", user{ID: "u1", Name: "e", Version: 4, Deleted: true}, " 0 unknown user"},
		{"a version from before the deletion", user{ID: "u1", Email: "u1@example.com", Version: 3}, " 0 unknown user"},
	} {
		s.apply(row.user)
		u, err := s.byEmail(t.Context(), "u1@example.com")
		equal(t, row.name, fmt.Sprint(u.Name, " ", u.Version, " ", errText(err)), row.want)
	}
}

// TestUsersDelete deletes u3 and registers its email again.
func TestUsersDelete(t *testing.T) {
	s := filled(t, 5)
	remove := func(u *user) error { u.Deleted, u.Sessions = true, []session{{}}; return nil }
	_, err := s.update(t.Context(), "u3", remove)
	want, got := user{ID: "u3", Version: 2, Deleted: true}, *s.records[3]
	if err != nil || !reflect.DeepEqual(got, want) || len(s.emails) != 4 {
		t.Errorf("got %v, %+v and %d emails, want %+v and 4", err, got, len(s.emails), want)
	}
	_, err = s.byID(t.Context(), "u3")
	_, err2 := s.byEmail(t.Context(), "u3@example.com")
	_, err3 := s.update(t.Context(), "u3", remove)
	equal(t, "look-ups", errText(errors.Join(err, err2, err3)), "unknown user\nunknown user\nunknown user")
	err = s.add(t.Context(), user{ID: "u9", Email: "U3@example.com"})
	u, err2 := s.byEmail(t.Context(), "u3@example.com")
	equal(t, "registered again", fmt.Sprint(u.ID, err, err2), "u9<nil> <nil>")
	for after, want := range map[string]string{"": "u0 u1 u2 u4", "u2": "u4 u9", "u3": "u4 u9"} {
		page, err := s.after(after, 4)
		equal(t, "after "+after, userIDs(page)+errText(err), want+"accepted")
	}
}

func TestUsersAfter(t *testing.T) {
	s := filled(t, 5)
	for page, want := range map[string]string{ // the limit and the id of the last user on the page before
		"2": "[u0 u1] <nil>", "2 u1": "[u2 u3] <nil>", "2 u3": "[u4] <nil>", "2 u4": "[] <nil>", "0": "[] <nil>",
		"5": "[u0 u1 u2 u3 u4] <nil>", "6": "[u0 u1 u2 u3 u4] <nil>", "2 u5": "[] unknown user",
	} {
		limit, id, _ := strings.Cut(page, " ")
		n, _ := strconv.Atoi(limit)
		list, err := s.after(id, n)
		equal(t, page, fmt.Sprint("[", userIDs(list), "] ", err), want)
	}
}

// TestLastAdmin has two admins remove each other, ten times each at once. One is left, also among
// others who don't count.
func TestLastAdmin(t *testing.T) {
	for name, remove := range map[string]func(*user){
		"demote":  func(u *user) { u.Scopes = []string{"me"} },
		"disable": func(u *user) { u.Disabled = true },
		"delete":  func(u *user) { u.Deleted = true },
	} {
		s := filled(t, 5)
		set := func(id string, modify func(*user)) error {
			_, err := s.update(t.Context(), id, func(u *user) error { modify(u); return nil })
			return err
		}
		equal(t, name+", no admin", s.hasAdmin(), false)
		for _, id := range []string{"u1", "u2", "u3"} {
			set(id, func(u *user) { u.Scopes = []string{"admin"} })
		}
		equal(t, name+", the third admin", set("u2", func(u *user) { u.Disabled = true }), nil)
		var wg sync.WaitGroup
		var rejected atomic.Int64
		for i := range 20 {
			wg.Go(func() {
				if err := set([]string{"u1", "u3"}[i%2], remove); err == errLastAdmin {
					rejected.Add(1)
				}
			})
		}
		wg.Wait()
		equal(t, name+", rejected", rejected.Load(), 10)
		equal(t, name+", admins left", s.records[1].isAdmin() != s.records[3].isAdmin() && s.hasAdmin(), true)
		last, _ := s.admin("")
		equal(t, name+", another change", set(last.ID, func(u *user) { u.Name = "Other" }), nil)
	}
}

// configText returns a config as NAME=value. The number of hashes depends on the machine.
func configText(cfg config) []string {
	var previous []string
	for _, s := range cfg.previousSecrets {
		previous = append(previous, s.reveal())
	}
	return []string{
		"secret=" + cfg.jwtSecret.reveal(), fmt.Sprint("previous=", previous),
		"issuer=" + cfg.issuer, fmt.Sprint("access=", cfg.accessMinutes), fmt.Sprint("refresh=", cfg.refreshDays),
		"addr=" + cfg.addr, "admin=" + cfg.adminEmail, "password=" + cfg.adminPassword.reveal(), "store=" + cfg.storePath,
		fmt.Sprint("argon2=", cfg.argon2), fmt.Sprint("origins=", cfg.origins), fmt.Sprint("throttle=", cfg.throttle),
		fmt.Sprint("proxies=", cfg.trustedProxies), fmt.Sprint("docs=", cfg.docs), "log=" + cfg.logFormat,
	}
}

const defaults = "secret=" + partsSecret + "|previous=[]|issuer=jwt-auth-api|access=15|refresh=7|" +
	"addr=127.0.0.1:8000|admin=admin@example.com|password=admin-password|argon2=m=65536,t=3,p=4|origins=[]|throttle=true|" +
	"proxies=[]|docs=true|log=text|store="

// loadText loads a config from lines of NAME=value, after a valid secret, and returns the warnings
// and what differs from the defaults, or the error.
func loadText(environ string) string {
	cfg, warnings, err := loadConfig(append([]string{"APP_JWT_SECRET=" + partsSecret}, strings.Split(environ, "\n")...))
	if err != nil {
		return err.Error()
	}
	isDefault := func(text string) bool { return slices.Contains(strings.Split(defaults, "|"), text) }
	return cmp.Or(strings.Join(append(warnings, slices.DeleteFunc(configText(cfg), isDefault)...), " "), "the defaults")
}

func TestSettings(t *testing.T) {
	checkRows(t, "settings.json", func(environ string) error {
		t.Chdir(t.TempDir()) // has no .env
		return errors.New(loadText(environ))
	})
	equal(t, "invalid UTF-8", loadText("APP_ISSUER=\xff\nAPP_ADMIN_PASSWORD=password\xff"),
		"APP_ISSUER: must be UTF-8 of at most 256 bytes\nAPP_ADMIN_PASSWORD: must be 8 to 128 characters of UTF-8, got 9")
}

// TestSettingsFaults makes every fault at once. That of the documented password is reported only if
// there is no other.
func TestSettingsFaults(t *testing.T) {
	t.Chdir(t.TempDir())
	var environ, want []string
	for _, setting := range new(config).settings() {
		environ, want = append(environ, setting.Name+"=\xff"), append(want, setting.Name)
	}
	_, _, err := loadConfig(environ)
	got := regexp.MustCompile(`(?m)^\w+`).FindAllString(errText(err), -1)
	equal(t, "faults", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// TestHashesAtOnce sets the number of cores and the memory limit.
func TestHashesAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	const hash = 3 * 19 << 20 // bytes
	for _, row := range []struct {
		cores, lanes int
		limit        int64
		want         string
	}{
		{1, 4, hash, "1"}, {7, 4, 9 * hash, "1"}, {8, 4, 9 * hash, "2"}, {8, 1, 8 * hash, "8"}, {8, 1, 8*hash - 1, "7"},
		{8, 1, hash, "1"}, {8, 16, 9 * hash, "1"}, {8, 1, hash - 1, "needs 57 MiB of memory, got 56"},
	} {
		runtime.GOMAXPROCS(row.cores)
		debug.SetMemoryLimit(row.limit)
		var cfg config
		got := errText(cfg.parseArgon2(fmt.Sprintf("m=19456,t=2,p=%d", row.lanes)))
		if got == "accepted" {
			got = strconv.Itoa(cfg.hashes)
		}
		equal(t, fmt.Sprintf("%d cores, %d lanes, %d bytes", row.cores, row.lanes, row.limit), got, row.want)
		equal(t, "cores afterwards", runtime.GOMAXPROCS(0), row.cores)
	}
}

// TestAvailableMemory has the files of a machine with 8 KiB, in which a control group has less.
func TestAvailableMemory(t *testing.T) {
	for _, row := range []struct {
		name, groups, limited, limit string
		want                         int
	}{
		{"no limit", "0::/a.slice/b\n", "a.slice/b", "max\n", 8192},
		{"the root, as in a container", "0::/\n", ".", "4096\n", 4096},
		{"the group, after one of version 1", "4:memory:/x\n0::/a.slice/b\n", "a.slice/b", "4096\n", 4096},
		{"the parent group", "0::/a.slice/b\n", "a.slice", "4096\n", 4096},
		{"another group", "0::/a.slice/b\n", "a.slice/c", "4096\n", 8192},
		{"a group outside of the container", "0::/../b\n", ".", "4096\n", 4096},
		{"version 1", "4:memory:/x\n", ".", "4096\n", 4096},
		{"more than the machine has", "0::/\n", ".", "9000\n", 8192},
	} {
		got := availableMemory(fstest.MapFS{"proc/self/cgroup": {Data: []byte(row.groups)},
			"proc/meminfo": {Data: []byte("MemTotal:         8 kB\nMemFree: 1 kB\n")},
			path.Join("sys/fs/cgroup", row.limited, "memory.max"): {Data: []byte(row.limit)}})
		equal(t, row.name, int(got), row.want)
	}
	equal(t, "another system", availableMemory(fstest.MapFS{}), uint64(debug.SetMemoryLimit(-1)))
}

// TestEnvExample checks that .env.example has each setting with its default, in order.
func TestEnvExample(t *testing.T) {
	example, _ := os.ReadFile(".env.example")
	got := regexp.MustCompile(`(?m)^[^#\n]+`).FindAllString(string(example), -1)
	var want []string
	for _, setting := range new(config).settings() {
		want = append(want, setting.Name+"="+setting.Default)
		if setting.Secret {
			want = append(want, setting.Name+"_FILE=")
		}
	}
	equal(t, "variables", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// TestNewServer compares servers of two configs.
func TestNewServer(t *testing.T) {
	cfg := config{jwtSecret: newSecret(partsSecret), previousSecrets: []secret{newSecret(oldSecret)}, issuer: "x",
		accessMinutes: 1, refreshDays: 1, argon2: owaspMinimum, hashes: 3, docs: true, origins: []string{"*"},
		trustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	s, other := partsServer(t), serverOf(t, cfg)
	r := &http.Request{RemoteAddr: "10.0.0.1:80", Header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}}
	text := func(s *server) string {
		u, err := s.users.byID(t.Context(), "admin-0")
		return fmt.Sprint([]any{u.Email, u.Name, u.Scopes, err, s.passwords.verify("admin-password", u.hash),
			s.throttle != nil, s.docs, s.clientIP(r), s.origins, freeSlots(s.passwords), s.passwords.params,
			s.tokens.issuer, s.tokens.accessTTL, s.tokens.refreshTTL})
	}
	for want, s := range map[string]*server{
		"[admin@example.com Admin [me admin] <nil> <nil> true false 10.0.0.1 [] 1 m=8,t=1,p=1 jwt-auth-api 15m0s 168h0m0s]": s,
		"[  [] unknown user password hash: must be argon2id, version 19 " +
			"false true 192.0.2.1 [*] 3 m=19456,t=2,p=1 x 1m0s 24h0m0s]": other,
	} {
		equal(t, "server", text(s), want)
	}
	_, err := other.tokens.keys[0].verify(forge(plainHeader, ""))
	_, err2 := other.tokens.keys[1].verify(signed(oldSecret, b64(plainHeader)+"."))
	equal(t, "keys", fmt.Sprint(err, err2, len(other.tokens.keys)), "<nil> <nil> 2")
}

// TestAdminMemory measures the 19 MiB of the admin's hash, which newServer returns to the system.
func TestAdminMemory(t *testing.T) {
	held := func() int {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapSys - m.HeapReleased)
	}
	cfg := partsConfig()
	cfg.argon2 = owaspMinimum
	debug.FreeOSMemory()
	before := held()
	s := serverOf(t, cfg)
	if after := held(); after-before > 8<<20 {
		t.Errorf("got %d bytes more in use, want less than 8 MiB", after-before)
	}
	runtime.KeepAlive(s)
}

// addSeeds adds each row of a file, as build returns it, to a corpus.
func addSeeds(f *testing.F, file string, build func(input string) []any) {
	for _, row := range testfile.Read[[]dataRow](f, file) {
		f.Add(build(row.input())...)
	}
}

// FuzzTokenVerify signs its input. Each segment of an accepted token re-encodes to itself, and
// encoding/json reads the same claims.
func FuzzTokenVerify(f *testing.F) {
	addSeeds(f, "segments.json", func(input string) []any { return []any{input, plainClaims} })
	addSeeds(f, "headers.json", func(header string) []any { return []any{b64(header) + ".", ""} })
	addSeeds(f, "claims.json", func(payload string) []any { return []any{"", payload} })
	key := newHMACKey([]byte(partsSecret))
	f.Fuzz(func(t *testing.T, input, payload string) {
		for _, token := range []string{input, signed(partsSecret, input)} {
			if payload, err := key.verify(token); err == nil {
				checkVerified(t, token, payload)
			}
		}
		token := forge(plainHeader, payload)
		if got, err := key.verify(token); len(token) <= 4096 && (err != nil || got != payload) {
			t.Fatalf("got %q and %v, want %q", got, err, payload)
		}
		if c, err := parseClaims(payload); err == nil {
			checkClaims(t, c, payload)
		}
	})
}

// checkVerified checks a token that the codec accepted.
func checkVerified(t *testing.T, token, payload string) {
	t.Helper()
	segments := strings.Split(token, ".")
	header, err := base64.RawURLEncoding.DecodeString(segments[0])
	equal(t, "accepted", token, forge(string(header), payload))
	var parameters map[string]any
	if err = cmp.Or(err, json.Unmarshal(header, &parameters)); err != nil || parameters["alg"] != "HS256" {
		t.Errorf("got the header %s accepted, want alg HS256 (%v)", header, err)
	}
}

// checkClaims compares claims with encoding/json, then writes and parses them.
func checkClaims(t *testing.T, c claims, payload string) {
	t.Helper()
	var want map[string]any
	if err := json.Unmarshal([]byte(payload), &want); err != nil {
		t.Fatalf("got %s accepted, want %v", payload, err)
	}
	for name, got := range map[string]any{"sub": c.subject, "type": c.typ, "iss": c.issuer, "jti": c.id,
		"exp": c.expiry, "iat": c.issuedAt, "nbf": c.notBefore, "sid": c.session, "gen": float64(c.gen)} {
		if value, ok := want[name]; ok && got != value || !ok && !reflect.ValueOf(got).IsZero() {
			t.Errorf("%s: got %v, want %v", name, got, value)
		}
	}
	c.session, c.typ = cmp.Or(c.session, "s1"), refreshToken // Written tokens have a session.
	again, err := parseClaims(string(c.appendJSON(nil)))
	text := func(c claims) string {
		return fmt.Sprintf("%q", []any{c.subject, c.scopes, c.typ, c.id, c.issuer, c.session, c.gen})
	}
	equal(t, "written and parsed", fmt.Sprint(text(again), " ", err), text(c)+" <nil>")
}

func benchToken() (t *tokens, u user, s session, token string) {
	t, u = tokensAt(time.Unix(1795503214, 0), partsSecret), user{ID: newUUID(), Scopes: []string{"me"}}
	s = session{ID: newUUID(), Expires: 1796108014}
	return t, u, s, t.issuePair(u, s, "").AccessToken
}

func BenchmarkTokenSign(b *testing.B) {
	tokens, u, s, _ := benchToken()
	b.ReportAllocs()
	for b.Loop() {
		tokens.issue(u, s, accessToken, s.Expires)
	}
}

func BenchmarkTokenVerify(b *testing.B) {
	tokens, _, _, token := benchToken()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokens.verify(token, accessToken); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHMAC is the lower bound of the two above: one MAC over the same bytes.
func BenchmarkHMAC(b *testing.B) {
	_, _, _, token := benchToken()
	input := []byte(token[:strings.LastIndexByte(token, '.')])
	mac := hmac.New(sha256.New, []byte(partsSecret))
	var sum [sha256.Size]byte
	b.ReportAllocs()
	for b.Loop() {
		mac.Reset()
		mac.Write(input)
		mac.Sum(sum[:0])
	}
}

func BenchmarkPasswordVerify(b *testing.B) {
	p := newPasswords(phc.Params{Memory: 64 << 10, Time: 3, Threads: 4}, 1)
	encoded := p.hash("correct horse battery staple")
	b.ReportAllocs()
	for b.Loop() {
		if err := p.verify("correct horse battery staple", encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStore looks up users among n, updates them, and adds and removes one. They are few, so
// that it measures the work and not the cache misses.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1, 1000, 1_000_000} {
		s := filled(b, n)
		last := s.records[max(0, n-16):]
		for _, op := range []struct {
			name string
			run  func(id, email string)
		}{
			{"byID", func(id, _ string) { s.byID(b.Context(), id) }},
			{"byEmail", func(_, email string) { s.byEmail(b.Context(), email) }},
			{"update", func(id, _ string) { s.update(b.Context(), id, func(u *user) error { return nil }) }},
			{"add", func(string, string) {
				s.add(b.Context(), user{ID: "another", Email: "another@example.com"})
				delete(s.ids, "another")
				delete(s.emails, "another@example.com")
				s.records = s.records[:n]
			}},
		} {
			b.Run(fmt.Sprintf("%s/%d", op.name, n), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					op.run(last[i%len(last)].ID, last[i%len(last)].Email)
				}
			})
		}
	}
}

// A sink is the header of a response whose body is discarded.
type sink http.Header

func (s sink) Header() http.Header               { return http.Header(s) }
func (s sink) WriteHeader(int)                   {}
func (s sink) Write(b []byte) (n int, err error) { return len(b), nil }

// benchServer returns a server that logs to w, and the token pair of a user with the scope admin.
func benchServer(b *testing.B, w io.Writer) (*server, tokenPair) {
	cfg := partsConfig()
	cfg.adminEmail = ""
	s := serverOf(b, cfg)
	lines := logwriter.New(w, func(int) {})
	b.Cleanup(lines.Close)
	s.log = newLogger("text", lines)
	begun := newSession(newUUID(), "Mozilla/5.0", s.tokens.now(), s.tokens.refreshTTL)
	u := user{ID: newUUID(), Email: "user@example.com", Name: "Test User", Scopes: []string{"me", "admin"}}
	u.Sessions = []session{begun}
	s.users.add(b.Context(), u)
	return s, s.tokens.issuePair(u, begun, "")
}

// benchHandler measures requests with a body, or without one, but not the network. reset precedes
// each.
func benchHandler(b *testing.B, s *server, request, token, body string, reset func()) {
	handler := s.handler()
	method, path, _ := strings.Cut(request, " ")
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	b.ReportAllocs()
	for b.Loop() {
		reset()
		r.Body = io.NopCloser(strings.NewReader(body))
		handler.ServeHTTP(sink{}, r)
	}
}

// BenchmarkMe measures the middleware, the token, its session, the handler and the log line.
func BenchmarkMe(b *testing.B) {
	s, pair := benchServer(b, io.Discard)
	benchHandler(b, s, "GET /me", pair.AccessToken, "", func() {})
}

// BenchmarkRefresh measures a rotation, always from the same record.
func BenchmarkRefresh(b *testing.B) {
	s, pair := benchServer(b, io.Discard)
	record := s.users.records[0]
	body := fmt.Sprintf(`{"refresh_token":%q}`, pair.RefreshToken)
	benchHandler(b, s, "POST /auth/refresh", "", body, func() { s.users.records[0] = record })
	equal(b, "generation", s.users.records[0].Sessions[0].Gen, 1)
}

// BenchmarkListUsers writes a list of a million users.
func BenchmarkListUsers(b *testing.B) {
	s, pair := benchServer(b, io.Discard)
	caller := *s.users.records[0]
	s.users = filled(b, 1_000_000)
	s.users.add(b.Context(), caller)
	benchHandler(b, s, "GET /admin/users", pair.AccessToken, "", func() {})
}
