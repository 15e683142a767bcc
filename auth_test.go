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
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/input"
	"jwt-auth-api/internal/logwriter"
	"jwt-auth-api/internal/throttle"
)

// These tests check the parts one by one; e2e_test.go checks the service over HTTP. A token that is
// rejected is signed with the right key and valid in all other respects, so that the check under test
// is what fails.

const (
	partsSecret = "the secret of the unit tests, and of nothing else"
	oldSecret   = "last year's secret, whose tokens are still valid"
	plainHeader = `{"alg":"HS256","typ":"JWT"}`
	plainClaims = `{"sub":"u1","scopes":["me"],"type":"access","jti":"j1","iat":1000,"nbf":1001.5,"exp":2000,` +
		`"iss":"jwt-auth-api"}`
)

// cheap has the lowest parameters of argon2. A hash takes microseconds.
var cheap = argon2Params{memory: 8, time: 1, threads: 1}

var loopback = netip.MustParseAddr("127.0.0.1")

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// signed appends the MAC to the first two segments of a token, whatever they are. It shares no code
// with the codec.
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

// readTestdata decodes a file of testdata into v. A member that v lacks is an error.
func readTestdata(t testing.TB, name string, v any) {
	t.Helper()
	content, err := os.ReadFile("testdata/" + name)
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := cmp.Or(err, decoder.Decode(v)); err != nil {
		t.Fatalf("%s: %v", name, err)
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
	var rows []dataRow
	readTestdata(t, file, &rows)
	equal(t, file+" has rows", len(rows) > 0, true)
	for _, row := range rows {
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
	payload, err := newHMACKey(secret).open(v.Token)
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

// TestPublishedTokens begins with the example of RFC 7515 appendix A.1. It compares the reasons too:
// a token rejected for another reason would hide a missing check.
func TestPublishedTokens(t *testing.T) {
	var file struct {
		About    string
		Licences map[string]string
		Vectors  []jwsVector
	}
	readTestdata(t, "jws_hs256.json", &file)
	equal(t, "vectors", len(file.Vectors), 75)
	for _, v := range file.Vectors {
		want := map[string]string{"accept": "accepted", "reject": v.Reason}[v.Expect]
		equal(t, v.ID+", "+v.Comment, errText(v.check()), want)
	}
}

// TestTokensOfTheOriginal verifies the pair that PyJWT made for the original service, and makes the
// same bytes.
func TestTokensOfTheOriginal(t *testing.T) {
	var file struct {
		About, Secret string
		Tokens        []struct{ Type, Token, Claims string }
	}
	readTestdata(t, "tokens.json", &file)
	equal(t, "tokens", len(file.Tokens), 2)
	for _, token := range file.Tokens {
		c, _ := parseClaims(token.Claims)
		equal(t, token.Type, newHMACKey([]byte(file.Secret)).sign(c.appendJSON(nil)), token.Token)
		iat, exp := time.Unix(int64(c.issuedAt), 0), time.Unix(int64(c.expiry), 0)
		for now, want := range map[time.Time]string{
			iat.Add(-60_001 * time.Millisecond): "iat: token issued in the future",
			iat.Add(-60 * time.Second):          "accepted",
			exp.Add(-time.Millisecond):          "accepted",
			exp:                                 "exp: token expired, or without exp",
			exp.AddDate(1, 0, 0):                "exp: token expired, or without exp",
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
		expiry: 2000, issuer: "jwt-auth-api"}
	if !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("got %+v and %v, want %+v", got, err, want)
	}
}

func TestTokenSegments(t *testing.T) {
	key := newHMACKey([]byte(partsSecret))
	checkRows(t, "segments.json", func(input string) error {
		payload, err := key.open(signed(partsSecret, input))
		if _, segment, _ := strings.Cut(input, "."); err == nil && b64(payload) != segment || err != nil && payload != "" {
			t.Errorf("%q: got payload %q and %v, want the payload or an error", input, payload, err)
		}
		return err
	})
	for token, want := range map[string]error{"": errSegments, ".": errSegments, "..": errSignature, "...": errSegments} {
		_, err := key.open(token)
		equal(t, token, err, want)
	}
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
				if payload, err := key.open(altered); altered != token && (err != want || payload != "") {
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
		_, err := newHMACKey([]byte(partsSecret)).open(token)
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
				if got, err := key.open(token); got != payload || err != nil || token != forge(plainHeader, payload) {
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
		signed(oldSecret, past):     "exp: token expired, or without exp",
	} {
		_, err := tokens.verify(token, accessToken)
		equal(t, token, errText(err), want)
	}
	_, err := newHMACKey([]byte(partsSecret)).open(tokens.issuePair(user{id: "u1"}).AccessToken)
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
		pair := tokens.issuePair(user{id: "u1", scopes: scopes})
		equal(t, "pair", fmt.Sprint(pair.TokenType, pair.ExpiresIn), "bearer900")
		for _, row := range []struct{ token, typ, exp string }{
			{pair.AccessToken, "access", "1900"},
			{pair.RefreshToken, "refresh", "605800"},
		} {
			payload, _ := tokens.keys[0].open(row.token)
			c, err := tokens.verify(row.token, row.typ)
			want := fmt.Sprintf(`{"sub":"u1","scopes":%s,"type":%q,"jti":%q,"iat":1000,"exp":%s,"iss":"jwt-auth-api"}`,
				list, row.typ, c.id, row.exp)
			if payload != want || err != nil || !uuidV4.MatchString(c.id) || seen[c.id] {
				t.Errorf("got %s and %v, want %s with a new UUID", payload, err, want)
			}
			seen[c.id] = true
		}
	}
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
		for _, value := range []secret{cfg.jwtSecret, cfg.adminPassword, u.hash, s.passwords.decoy, s.logKey} {
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
	var file struct {
		About   string
		Vectors []argon2Vector
	}
	readTestdata(t, "argon2.json", &file)
	equal(t, "vectors", len(file.Vectors), 74)
	p := &passwords{params: argon2Params{memory: 65536, time: 3, threads: 4}}
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

// TestPHC only parses: a hash at the upper bounds takes seconds.
func TestPHC(t *testing.T) {
	checkRows(t, "phc.json", func(encoded string) error {
		h, err := parsePHC(encoded)
		if err == nil && h.String() != encoded {
			return fmt.Errorf("got %s, want it unchanged", h)
		}
		return err
	})
}

func TestHashAndVerify(t *testing.T) {
	p := newPasswords(argon2Params{memory: 32, time: 2, threads: 3}, 1)
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

// fullPasswords returns passwords with all slots taken and some requests queued. A receive from slots
// frees one.
func fullPasswords(slots, queued int) *passwords {
	p := newPasswords(cheap, slots)
	for range slots {
		p.slots <- struct{}{}
	}
	p.queued.Store(int64(queued))
	return p
}

// TestAcquire measures how long a request waits for a slot when all are taken, by a clock that jumps
// ahead when all goroutines wait.
func TestAcquire(t *testing.T) {
	for _, row := range []struct {
		name          string
		slots, queued int
		canceled      time.Duration // when the client leaves
		freed         time.Duration // when a slot is free
		want          string
	}{
		{"an empty queue", 1, 0, time.Hour, time.Hour, "busy, try again after 5s"},
		{"the last place in the queue", 1, 63, time.Hour, time.Hour, "busy, try again after 5s"},
		{"a full queue", 1, 64, time.Hour, time.Hour, "busy, try again after 0s"},
		{"the last place with two slots", 2, 127, time.Hour, time.Hour, "busy, try again after 5s"},
		{"a full queue with two slots", 2, 128, time.Hour, time.Hour, "busy, try again after 0s"},
		{"a client that leaves", 1, 0, time.Second, time.Hour, "busy, try again after 1s"},
		{"a slot that is freed", 1, 63, time.Hour, 4 * time.Second, "accepted after 4s"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), row.canceled)
			defer cancel()
			p, start := fullPasswords(row.slots, row.queued), time.Now()
			timer := time.AfterFunc(row.freed, func() { <-p.slots })
			defer timer.Stop()
			release, err := p.acquire(ctx)
			equal(t, row.name, fmt.Sprint(errText(err), " after ", time.Since(start)), row.want)
			got, want := fmt.Sprint(len(p.slots), p.queued.Load()), fmt.Sprint(row.slots, row.queued)
			equal(t, row.name+", slots taken and requests queued", got, want)
			if err == nil {
				release()
				equal(t, row.name+", slots taken after release", len(p.slots), row.slots-1)
			}
		})
	}
	p := newPasswords(cheap, 1)
	p.queued.Store(64) // A free slot needs no queue.
	_, err := p.acquire(t.Context())
	equal(t, "a free slot, and slots taken", fmt.Sprint(err, len(p.slots)), "<nil> 1")
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
	s, err := newServer(t.Context(), cfg, clock, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// partsServer returns a server with an admin, the user u1 and the user broken, whose hash is none.
func partsServer(t testing.TB) *server {
	s := serverOf(t, partsConfig())
	for _, u := range []user{
		{id: "u1", email: "User@example.com", name: "User", scopes: []string{"me"}, hash: s.passwords.hash("secret123")},
		{id: "broken", email: "broken@example.com", hash: newSecret("secret123")},
	} {
		s.users.add(t.Context(), u)
	}
	return s
}

// TestCheckPassword makes the password of the decoy known. Each row follows nine failures. A second
// attempt, and a third one after one more failure, show whether the first one was a failure, a success
// that cleared the nine, or neither.
func TestCheckPassword(t *testing.T) {
	s := partsServer(t)
	s.passwords.decoy = s.passwords.hash("decoy-password")
	then := map[string]string{
		"accepted": "accepted, accepted",
		"incorrect email or password: wrong password": "too many attempts, too many attempts",
		"incorrect email or password: unknown user":   "too many attempts, too many attempts",
		"password hash: must be argon2id, version 19": "password hash: must be argon2id, version 19, too many attempts",
	}
	checkRows(t, "passwords.json", func(input string) error {
		address, password, _ := strings.Cut(input, " ")
		s.throttle = throttle.New(s.tokens.now)
		for range 9 {
			s.throttle.Failed(email.Key(address), loopback)
		}
		u, err := s.checkPassword(t.Context(), loopback, address, password)
		if err == nil && !strings.EqualFold(u.email, address) || errors.Is(err, errBadCredentials) && u.id != "" {
			t.Errorf("%s: got user %q and %v, want the user or an error", input, u.id, err)
		}
		_, second := s.checkPassword(t.Context(), loopback, address, password)
		s.throttle.Failed(email.Key(address), loopback)
		_, third := s.checkPassword(t.Context(), loopback, address, password)
		equal(t, input+" after "+errText(err), errText(second)+", "+errText(third), then[errText(err)])
		equal(t, input+", slots taken", len(s.passwords.slots), 0)
		return err
	})
}

// TestCheckPasswordCost measures the memory of a hash, which is also its time: an attacker must not
// learn from it whether an email is known.
func TestCheckPasswordCost(t *testing.T) {
	s := partsServer(t)
	s.passwords = newPasswords(argon2Params{memory: 4096, time: 1, threads: 1}, 1)
	hash := s.passwords.hash("secret123")
	s.users.update(t.Context(), "u1", func(u *user) error { u.hash = hash; return nil })
	for _, login := range []string{"user@example.com secret123", "user@example.com secret124", "nobody@example.com x"} {
		address, password, _ := strings.Cut(login, " ")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.checkPassword(t.Context(), loopback, address, password)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got < 4<<20 || got > 6<<20 {
			t.Errorf("%s: got %d bytes allocated, want the 4 MiB of one hash", login, got)
		}
	}
}

// TestThrottledAttempts makes forty attempts on a known and on an unknown email while they wait for one
// slot. Ten are checked. Later ones are rejected before they wait for a slot.
func TestThrottledAttempts(t *testing.T) {
	for _, address := range []string{"user@example.com", "nobody@example.com"} {
		synctest.Test(t, func(t *testing.T) {
			s := partsServer(t)
			s.passwords.slots <- struct{}{}
			errs := make(chan error, 40)
			for range cap(errs) {
				go func() {
					_, err := s.checkPassword(t.Context(), loopback, address, "secret124")
					errs <- err
				}()
			}
			synctest.Wait()
			<-s.passwords.slots
			got := map[bool]int{}
			for range cap(errs) {
				got[errors.Is(<-errs, errBadCredentials)]++
			}
			equal(t, address+", attempts checked and throttled", [2]int{got[true], got[false]}, [2]int{10, 30})
			s.passwords = fullPasswords(1, 64)
			for client, want := range map[string]string{"127.0.0.1": "too many attempts", "192.0.2.1": "busy, try again"} {
				_, err := s.checkPassword(t.Context(), netip.MustParseAddr(client), strings.ToUpper(address), "secret123")
				equal(t, address+" and "+client, errText(err), want)
			}
		})
	}
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// TestRehash stores a hash with other parameters, which only a successful login replaces. The last login
// does not: the password changes while it reads the salt of the new hash.
func TestRehash(t *testing.T) {
	s := partsServer(t)
	old := newPasswords(argon2Params{memory: 16, time: 1, threads: 1}, 1).hash("secret123")
	store := func(hash secret) {
		s.users.update(t.Context(), "u1", func(u *user) error { u.hash = hash; return nil })
	}
	login := func(password string) (hash secret, err error) {
		_, err = s.checkPassword(t.Context(), loopback, "user@example.com", password)
		u, _ := s.users.byID(t.Context(), "u1")
		return u.hash, err
	}
	store(old)
	if hash, err := login("secret124"); !errors.Is(err, errMismatch) || hash != old {
		t.Errorf("wrong password: got %v and %s, want %v and %s", err, hash.reveal(), errMismatch, old.reveal())
	}
	current, err := login("secret123")
	if err != nil || s.passwords.needsRehash(current) || s.passwords.verify("secret123", current) != nil {
		t.Errorf("first login: got %v and %s, want a current hash of the password", err, current.reveal())
	}
	if hash, err := login("secret123"); err != nil || hash != current {
		t.Errorf("second login: got %v and %s, want %s", err, hash.reveal(), current.reveal())
	}
	store(old)
	defer func(r io.Reader) { rand.Reader = r }(rand.Reader)
	rand.Reader = readerFunc(func(b []byte) (int, error) { store(current); return len(b), nil })
	if hash, err := login("secret123"); err != nil || hash != current {
		t.Errorf("a password changed meanwhile: got %v and %s, want %s", err, hash.reveal(), current.reveal())
	}
}

// withTokens replaces each {ID SCOPE...} by an access token and each {refresh ID} by a refresh token.
func withTokens(s *server, text string) string {
	return regexp.MustCompile(`\{[^}]*\}`).ReplaceAllStringFunc(text, func(name string) string {
		id, scopes, _ := strings.Cut(strings.Trim(name, "{}"), " ")
		if id == "refresh" {
			return s.tokens.issuePair(user{id: scopes}).RefreshToken
		}
		return s.tokens.issuePair(user{id: id, scopes: strings.Fields(scopes)}).AccessToken
	})
}

func TestOAuthCode(t *testing.T) {
	missing, mismatch := input.Fault{Type: "missing"}, input.Fault{Type: "string_pattern_mismatch"}
	for _, row := range []struct {
		status int
		detail any
		want   string
	}{
		{400, "There was an error parsing the body", "invalid_request"},
		{401, "incorrect email or password", "invalid_grant"},
		{403, "account disabled", "invalid_grant"},
		{413, "Content Too Large", "invalid_request"},
		{422, input.Faults{missing}, "invalid_request"},
		{422, input.Faults{missing, mismatch}, "unsupported_grant_type"},
		{429, "too many attempts", "temporarily_unavailable"},
		{499, "", "invalid_request"},
		{500, "Internal Server Error", "temporarily_unavailable"},
	} {
		got := oauthCode(response{status: row.status, detail: row.detail})
		equal(t, fmt.Sprint(row.status, " ", row.detail), got, row.want)
	}
}

func TestCheckRefresh(t *testing.T) {
	s := partsServer(t)
	checkRows(t, "refresh.json", func(input string) error {
		u, err := s.checkRefresh(t.Context(), withTokens(s, input))
		equal(t, input+", the user", u.id == "u1", err == nil)
		equal(t, input+", errInvalidRefresh", errors.Is(err, errInvalidRefresh), strings.HasPrefix(errText(err), "invalid"))
		return err
	})
}

// TestRequireScope has rows of the required scope and the lines of the Authorization header. The user
// u1 has the scope me, the admin also admin. A row wants the error, or the id of the caller and the
// subject of the token, and then the challenge if there is one.
func TestRequireScope(t *testing.T) {
	s := partsServer(t)
	next := func(_ http.ResponseWriter, r *http.Request) error {
		return fmt.Errorf("%s %s", caller(r.Context()).user.id, caller(r.Context()).claims.subject)
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
}

// filled returns users u0, u1 and so on.
func filled(t testing.TB, n int) *users {
	s := newUsers()
	for i := range n {
		id := fmt.Sprintf("u%d", i)
		s.add(t.Context(), user{id: id, email: id + "@example.com", name: "User", scopes: []string{"me"}})
	}
	return s
}

func TestUsersLookup(t *testing.T) {
	s := filled(t, 5)
	want := user{id: "u3", email: "u3@example.com", name: "User", scopes: []string{"me"}}
	byID, err := s.byID(t.Context(), "u3")
	byEmail, err2 := s.byEmail(t.Context(), "U3@EXAMPLE.com")
	if err != nil || err2 != nil || !reflect.DeepEqual(byID, want) || !reflect.DeepEqual(byEmail, want) {
		t.Errorf("got %+v, %v, %+v and %v, want %+v", byID, err, byEmail, err2, want)
	}
	err = s.add(t.Context(), user{id: "u9", email: "u3@example.COM"})
	equal(t, "a taken email", errText(err), "email already registered")
	for _, key := range []string{"", "u5", "U3", "u9", "u5@example.com"} {
		u, err := s.byID(t.Context(), key)
		u2, err2 := s.byEmail(t.Context(), key)
		if err != errUnknownUser || err2 != errUnknownUser || u.id+u2.id != "" {
			t.Errorf("%q: got %+v, %v, %+v and %v, want %v", key, u, err, u2, err2, errUnknownUser)
		}
	}
}

// TestUsersConcurrently registers spellings of one email while every other method runs.
func TestUsersConcurrently(t *testing.T) {
	s := filled(t, 1)
	spellings := []string{"user@example.com", "User@example.com", "USER@example.com", "u\u017fer@example.com"}
	added := make(chan string, 20)
	var wg sync.WaitGroup
	for i := range cap(added) {
		wg.Go(func() {
			u := user{id: strconv.Itoa(i), email: spellings[i%len(spellings)]}
			if err := s.add(t.Context(), u); err == nil {
				added <- u.id
			} else if err != errEmailTaken {
				t.Errorf("got %v, want %v", err, errEmailTaken)
			}
			s.update(t.Context(), "u0", func(u *user) error { u.name += "x"; return nil })
			s.byID(t.Context(), "u0")
			s.after(t.Context(), "", 3)
			s.hasAdmin()
		})
	}
	wg.Wait()
	u0, _ := s.byID(t.Context(), "u0")
	u, err := s.byEmail(t.Context(), "user@example.com")
	if len(added) != 1 || len(s.records) != 2 || err != nil || u.id != <-added || len(u0.name) != 24 {
		t.Errorf("got %d users, %+v, %v and %+v, want one more user and 20 updates", len(s.records), u, err, u0)
	}
}

// TestUsersUpdate also modifies what went in and what came out, which are copies.
func TestUsersUpdate(t *testing.T) {
	s := filled(t, 5)
	former := s.records[3]
	change := func(u *user) error { u.name, u.hash = "Other", newSecret("h"); return nil }
	if err := s.update(t.Context(), "u3", change); err != nil || former.name != "User" {
		t.Errorf("got %v and the former record %+v, want it unchanged", err, former)
	}
	var kept *user
	fail := func(u *user) error { u.name, kept = "failed", u; return errBusy }
	equal(t, "a change that fails", errText(s.update(t.Context(), "u3", fail)), "busy, try again")
	unknown := func(*user) error { t.Error("an unknown user: got a change, want none"); return nil }
	equal(t, "an unknown user", errText(s.update(t.Context(), "u5", unknown)), "unknown user")
	page, _ := s.after(t.Context(), "", 9)
	page[2].name, kept.name = "changed", "changed"
	page, _ = s.after(t.Context(), "", 9)
	for i, u := range page {
		want := map[bool]string{true: "Other h", false: "User "}[i == 3]
		equal(t, u.id, u.name+" "+u.hash.reveal(), want)
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
		list, err := s.after(t.Context(), id, n)
		var ids []string
		for _, u := range list {
			ids = append(ids, u.id)
		}
		equal(t, page, fmt.Sprint(ids, " ", err), want)
	}
}

func TestHasAdmin(t *testing.T) {
	s := filled(t, 5)
	for scope, want := range map[string]bool{"me": false, "administrator": false, "Admin": false, "admin": true} {
		s.update(t.Context(), "u3", func(u *user) error { u.scopes = []string{"me", scope}; return nil })
		equal(t, scope, s.hasAdmin(), want)
	}
}

// configText returns a config as NAME=value. The number of hashes depends on the machine.
func configText(cfg config) []string {
	var previous []string
	for _, s := range cfg.previousSecrets {
		previous = append(previous, s.reveal())
	}
	return []string{
		"secret=" + cfg.jwtSecret.reveal(), fmt.Sprint("previous=", previous), "algorithm=" + cfg.algorithm,
		"issuer=" + cfg.issuer, fmt.Sprint("access=", cfg.accessMinutes), fmt.Sprint("refresh=", cfg.refreshDays),
		"addr=" + cfg.addr, "admin=" + cfg.adminEmail, "password=" + cfg.adminPassword.reveal(),
		fmt.Sprint("argon2=", cfg.argon2), fmt.Sprint("origins=", cfg.origins), fmt.Sprint("throttle=", cfg.throttle),
		fmt.Sprint("proxies=", cfg.trustedProxies), fmt.Sprint("docs=", cfg.docs), "log=" + cfg.logFormat,
	}
}

const defaults = "secret=" + partsSecret + "|previous=[]|algorithm=HS256|issuer=jwt-auth-api|access=15|refresh=7|" +
	"addr=127.0.0.1:8000|admin=admin@example.com|password=admin-password|argon2=m=65536,t=3,p=4|origins=[]|throttle=true|" +
	"proxies=[]|docs=true|log=text"

// loadText loads a config from lines of NAME=value, after a valid secret, and returns the warnings and
// what differs from the defaults, or the error.
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
		"APP_ISSUER: must be UTF-8\nAPP_ADMIN_PASSWORD: must be 8 to 128 characters of UTF-8, got 9")
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
		{8, 1, hash, "1"}, {8, 16, 9 * hash, "1"}, {8, 1, hash - 1, "needs 57 MiB, and 56 are available"},
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

// TestAvailableMemory compares with the files of Linux. Other systems have none.
func TestAvailableMemory(t *testing.T) {
	want := uint64(debug.SetMemoryLimit(-1))
	for name, unit := range map[string]uint64{"/sys/fs/cgroup/memory.max": 1, "/proc/meminfo": 1024} {
		content, _ := os.ReadFile(name)
		if field := regexp.MustCompile(`^(MemTotal: +)?([0-9]+)\b`).FindSubmatch(content); field != nil {
			n, _ := strconv.ParseUint(string(field[2]), 10, 64)
			want = min(want, n*unit)
		}
	}
	equal(t, "bytes", availableMemory(), want)
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

// TestNewServer compares servers of two configs, and one with another secret.
func TestNewServer(t *testing.T) {
	cfg := config{jwtSecret: newSecret(partsSecret), previousSecrets: []secret{newSecret(oldSecret)}, issuer: "x",
		accessMinutes: 1, refreshDays: 1, argon2: owaspMinimum, hashes: 3, docs: true, origins: []string{"*"},
		trustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	s, other := partsServer(t), serverOf(t, cfg)
	r := &http.Request{RemoteAddr: "10.0.0.1:80", Header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}}
	text := func(s *server) string {
		u, err := s.users.byID(t.Context(), "admin-0")
		return fmt.Sprint([]any{u.email, u.name, u.scopes, err, s.passwords.verify("admin-password", u.hash),
			s.throttle != nil, s.docs, s.clientIP(r), s.origins, cap(s.passwords.slots), s.passwords.params,
			s.tokens.issuer, s.tokens.accessTTL, s.tokens.refreshTTL})
	}
	for want, s := range map[string]*server{
		"[admin@example.com Admin [me admin] <nil> <nil> true false 10.0.0.1 [] 1 m=8,t=1,p=1 jwt-auth-api 15m0s 168h0m0s]": s,
		"[  [] unknown user password hash: must be argon2id, version 19 " +
			"false true 192.0.2.1 [*] 3 m=19456,t=2,p=1 x 1m0s 24h0m0s]": other,
	} {
		equal(t, "server", text(s), want)
	}
	_, err := other.tokens.keys[0].open(forge(plainHeader, ""))
	_, err2 := other.tokens.keys[1].open(signed(oldSecret, b64(plainHeader)+"."))
	equal(t, "keys", fmt.Sprint(err, err2, len(other.tokens.keys)), "<nil> <nil> 2")
	cfg.jwtSecret = newSecret(oldSecret)
	key, sameSecret, otherSecret := s.logKey.reveal(), other.logKey.reveal(), serverOf(t, cfg).logKey.reveal()
	if len(key) != 32 || key != sameSecret || key == otherSecret {
		t.Errorf("log key: got %x, %x and %x, want 32 bytes that depend only on the secret", key, sameSecret, otherSecret)
	}
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
	var rows []dataRow
	readTestdata(f, file, &rows)
	for _, row := range rows {
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
			if payload, err := key.open(token); err == nil {
				checkOpened(t, token, payload)
			}
		}
		token := forge(plainHeader, payload)
		if got, err := key.open(token); len(token) <= 4096 && (err != nil || got != payload) {
			t.Fatalf("got %q and %v, want %q", got, err, payload)
		}
		if c, err := parseClaims(payload); err == nil {
			checkClaims(t, c, payload)
		}
	})
}

// checkOpened checks a token that the codec accepted.
func checkOpened(t *testing.T, token, payload string) {
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
		"exp": c.expiry, "iat": c.issuedAt, "nbf": c.notBefore} {
		if value, ok := want[name]; ok && got != value || !ok && !reflect.ValueOf(got).IsZero() {
			t.Errorf("%s: got %v, want %v", name, got, value)
		}
	}
	again, err := parseClaims(string(c.appendJSON(nil)))
	text := func(c claims) string { return fmt.Sprintf("%q", []any{c.subject, c.scopes, c.typ, c.id, c.issuer}) }
	equal(t, "written and parsed", fmt.Sprint(text(again), " ", err), text(c)+" <nil>")
}

// FuzzPHC computes no hash: it checks the bounds of the cost.
func FuzzPHC(f *testing.F) {
	addSeeds(f, "phc.json", func(encoded string) []any { return []any{encoded} })
	f.Fuzz(func(t *testing.T, encoded string) {
		h, err := parsePHC(encoded)
		if err != nil {
			return
		}
		m, time, p := h.params.memory, h.params.time, uint32(h.params.threads)
		if p < 1 || p > 16 || time < 1 || time > 10 || m < 8*p || m > 256<<10 ||
			len(h.salt) < 8 || len(h.salt) > 64 || len(h.hash) < 16 || len(h.hash) > 64 {
			t.Errorf("got %s accepted, want it within the bounds", h)
		}
		equal(t, "encoded again", h.String(), encoded)
	})
}

func benchToken() (t *tokens, u user, token string) {
	t, u = tokensAt(time.Unix(1795503214, 0), partsSecret), user{id: newUUID(), scopes: []string{"me"}}
	return t, u, t.issue(u, accessToken, t.accessTTL)
}

func BenchmarkTokenSign(b *testing.B) {
	tokens, u, _ := benchToken()
	b.ReportAllocs()
	for b.Loop() {
		tokens.issue(u, accessToken, tokens.accessTTL)
	}
}

func BenchmarkTokenVerify(b *testing.B) {
	tokens, _, token := benchToken()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokens.verify(token, accessToken); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHMAC is the lower bound of the two above: one MAC over the same bytes.
func BenchmarkHMAC(b *testing.B) {
	_, _, token := benchToken()
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
	p := newPasswords(argon2Params{memory: 64 << 10, time: 3, threads: 4}, 1)
	encoded := p.hash("correct horse battery staple")
	b.ReportAllocs()
	for b.Loop() {
		if err := p.verify("correct horse battery staple", encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStore looks up users among n, and adds and removes one. It looks up few, so that it measures
// the work and not the cache misses.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1, 1000, 1_000_000} {
		s := filled(b, n)
		last := s.records[max(0, n-16):]
		b.Run(fmt.Sprintf("byID/%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				s.byID(b.Context(), last[i%len(last)].id)
			}
		})
		b.Run(fmt.Sprintf("byEmail/%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				s.byEmail(b.Context(), last[i%len(last)].email)
			}
		})
		b.Run(fmt.Sprintf("add/%d", n), func(b *testing.B) {
			for b.Loop() {
				s.add(b.Context(), user{id: "another", email: "another@example.com"})
				delete(s.ids, "another")
				delete(s.emails, "another@example.com")
				s.records = s.records[:n]
			}
		})
	}
}

// BenchmarkStoreMemory reports the bytes per user, without the user's strings.
func BenchmarkStoreMemory(b *testing.B) {
	const n = 1_000_000
	source := filled(b, n)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := newUsers()
		for _, u := range source.records {
			s.add(b.Context(), *u)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "bytes/user")
		runtime.KeepAlive(s)
	}
}

// A sink is the header of a response whose body is discarded.
type sink http.Header

func (s sink) Header() http.Header               { return http.Header(s) }
func (s sink) WriteHeader(int)                   {}
func (s sink) Write(b []byte) (n int, err error) { return len(b), nil }

// benchServer returns a server that logs to w, and the access token of a user with the scope admin.
func benchServer(b *testing.B, w io.Writer) (s *server, token string) {
	cfg := partsConfig()
	cfg.adminEmail = ""
	s = serverOf(b, cfg)
	lines := logwriter.New(w, func(int) {})
	b.Cleanup(lines.Close)
	s.log = newLogger("text", lines)
	u := user{id: newUUID(), email: "user@example.com", name: "Test User", scopes: []string{"me", "admin"}}
	s.users.add(b.Context(), u)
	return s, s.tokens.issue(u, accessToken, time.Hour)
}

// benchHandler measures GET requests without a network.
func benchHandler(b *testing.B, s *server, path, token string) {
	handler := s.handler()
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(sink{}, r)
	}
}

// BenchmarkMe measures the middleware, the token, the handler and the log line.
func BenchmarkMe(b *testing.B) {
	s, token := benchServer(b, io.Discard)
	benchHandler(b, s, "/me", token)
}

// BenchmarkListUsers writes a list of a million users.
func BenchmarkListUsers(b *testing.B) {
	s, token := benchServer(b, io.Discard)
	caller := *s.users.records[0]
	s.users = filled(b, 1_000_000)
	s.users.add(b.Context(), caller)
	benchHandler(b, s, "/admin/users", token)
}

// BenchmarkServe has 32 clients that send requests over loopback as fast as they can: to a server of
// net/http with a constant response, and to this one with its log in a file.
func BenchmarkServe(b *testing.B) {
	b.Run("constant", func(b *testing.B) {
		benchServe(b, "", func(listener net.Listener) {
			http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, strings.Repeat("x", 110))
			}))
		})
	})
	b.Run("me", func(b *testing.B) {
		file, err := os.Create(b.TempDir() + "/log")
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		s, token := benchServer(b, file)
		benchServe(b, token, func(listener net.Listener) { s.serve(b.Context(), listener, defaultTimeouts) })
	})
}

// benchServe measures GET /me over loopback.
func benchServe(b *testing.B, token string, serve func(net.Listener)) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	go serve(listener)
	request := []byte("GET /me HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n")
	b.SetParallelism(max(1, 32/runtime.GOMAXPROCS(0)))
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		response := make([]byte, 4096) // One read takes a whole response.
		for pb.Next() {
			conn.Write(request)
			if n, err := conn.Read(response); err != nil || !bytes.HasPrefix(response[:n], []byte("HTTP/1.1 200")) {
				b.Errorf("got %q and %v, want 200", response[:n], err)
				return
			}
		}
	})
}
