package main

import (
	"bufio"
	"bytes"
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
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"
)

// These tests look at the parts one by one; e2e_test.go looks at the whole, over HTTP. What is to be refused is signed
// with the right key and is right in all else, so that the check under test is what fails.

const (
	partsSecret = "the secret of the unit tests, and of nothing else"

	plainHeader = `{"alg":"HS256","typ":"JWT"}`
	plainClaims = `{"sub":"u1","scopes":["me"],"type":"access","jti":"j1","iat":1000,"exp":2000,"iss":"jwt-auth-api"}`
)

// cheap are the least parameters that argon2 has, with which a hash takes microseconds.
var cheap = argon2Params{memory: 8, time: 1, threads: 1}

// loopback is the client where it does not matter who that is.
var loopback = netip.MustParseAddr("127.0.0.1")

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// signed adds the MAC to what stands before it in a token, however wrong that may be. It shares nothing with the codec.
func signed(secret, input string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, input)
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func forge(header, payload string) string { return signed(partsSecret, b64(header)+"."+b64(payload)) }

// tokensAt returns tokens whose clock stands still.
func tokensAt(now time.Time, secrets ...string) *tokens {
	t := &tokens{
		issuer:     "jwt-auth-api",
		accessTTL:  15 * time.Minute,
		refreshTTL: 7 * 24 * time.Hour,
		now:        func() time.Time { return now },
	}
	for _, secret := range secrets {
		t.keys = append(t.keys, newHMACKey([]byte(secret)))
	}
	return t
}

// base64Position is what encoding/base64 says beyond what the tests want to know.
var base64Position = regexp.MustCompile(` at input byte \d+$`)

// errText is the text of an error, and of none "accepted".
func errText(err error) string {
	if err == nil {
		return "accepted"
	}
	return base64Position.ReplaceAllString(err.Error(), "")
}

// replaced returns text with old, which must be in it, replaced by new.
func replaced(t *testing.T, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("got no %q in %q, want one to replace", old, text)
	}
	return strings.Replace(text, old, new, 1)
}

// readTestdata decodes a file of testdata. A member that no test reads is an error.
func readTestdata(t *testing.T, name string, into any) {
	t.Helper()
	file, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// A jwsVector is a token with the verdict that others have published.
type jwsVector struct {
	ID, Source, Layer, Key, Token, Comment string

	Now    int64  // of the layer time, in seconds
	Expect string // accept or reject
	Reason string // why we refuse it, if we do
}

// verdict looks at the token as far as the vector's layer goes.
func (v jwsVector) verdict() error {
	secret, err := base64.RawURLEncoding.DecodeString(v.Key)
	if err != nil {
		return err
	}
	if v.Layer == "key" {
		if _, err := loadSettings([]string{"APP_JWT_SECRET=" + string(secret)}, ""); err != nil {
			return err
		}
	}
	payload, err := newHMACKey(secret).open(v.Token)
	if err != nil {
		return err
	}
	if v.Layer != "time" && v.Layer != "claims" {
		if want := strings.Split(v.Token, ".")[1]; b64(payload) != want {
			return fmt.Errorf("got payload %q, want what %s encodes", payload, want)
		}
		return nil
	}
	c, err := parseClaims(payload)
	if err == nil && v.Layer == "time" {
		err = c.checkTime(time.Unix(v.Now, 0))
	}
	return err
}

// TestPublishedTokens begins with the example of RFC 7515 A.1. Beside the verdict it looks at the reason: a token that
// is refused for another would pass for a check that is not there.
func TestPublishedTokens(t *testing.T) {
	var file struct {
		About    string
		Licences map[string]string
		Vectors  []jwsVector
	}
	readTestdata(t, "jws_hs256.json", &file)
	if len(file.Vectors) != 75 || file.Vectors[0].ID != "rfc7515-A.1" {
		t.Fatalf("got %d vectors, want 75, and RFC 7515 A.1 first", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		want := map[string]string{"accept": "accepted", "reject": v.Reason}[v.Expect]
		if got := errText(v.verdict()); got != want || want == "" {
			t.Errorf("%s (%s): got %s, want %s", v.ID, v.Comment, got, want)
		}
	}
}

// TestTokensOfTheOriginal takes the pair that PyJWT made for the original service, and makes it again, byte for byte.
func TestTokensOfTheOriginal(t *testing.T) {
	var file struct {
		About, Secret string
		Tokens        []struct{ Type, Token, Claims string }
	}
	readTestdata(t, "tokens.json", &file)
	if len(file.Tokens) != 2 {
		t.Fatalf("got %d tokens, want 2", len(file.Tokens))
	}
	for _, token := range file.Tokens {
		c, err := parseClaims(token.Claims)
		if err != nil {
			t.Fatal(err)
		}
		if got := newHMACKey([]byte(file.Secret)).sign(c.appendJSON(nil)); got != token.Token {
			t.Errorf("%s token, made again: got %s, want %s", token.Type, got, token.Token)
		}
		iat, exp := time.Unix(int64(c.issuedAt), 0), time.Unix(int64(c.expiry), 0)
		for _, row := range []struct {
			name string
			now  time.Time
			want string
		}{
			{"a second before iat", iat.Add(-time.Second), "iat: token issued in the future"},
			{"at iat", iat, "accepted"},
			{"a second before exp", exp.Add(-time.Second), "accepted"},
			{"at exp", exp, "exp: token expired"},
			{"a second after exp", exp.Add(time.Second), "exp: token expired"},
			{"a year after exp", exp.AddDate(1, 0, 0), "exp: token expired"},
		} {
			_, err := tokensAt(row.now, file.Secret).verify(token.Token, token.Type)
			if got := errText(err); got != row.want {
				t.Errorf("%s token, %s: got %s, want %s", token.Type, row.name, got, row.want)
			}
		}
	}
}

// badHeaders are refused, however right the signature is and the claims are.
var badHeaders = []struct{ name, header, want string }{
	{"alg is missing", `{"typ":"JWT"}`, "header: alg: not HS256"},
	{"no parameter at all", `{}`, "header: alg: not HS256"},
	{"alg none", `{"alg":"none","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg None", `{"alg":"None","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg NONE", `{"alg":"NONE","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg nOnE", `{"alg":"nOnE","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg empty", `{"alg":"","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg in lower case", `{"alg":"hs256","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg with a space", `{"alg":"HS256 ","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg HS384", `{"alg":"HS384","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg HS512", `{"alg":"HS512","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg RS256", `{"alg":"RS256","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg ES256", `{"alg":"ES256","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg EdDSA", `{"alg":"EdDSA","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg null", `{"alg":null,"typ":"JWT"}`, "header: alg: not a string"},
	{"alg a number", `{"alg":256,"typ":"JWT"}`, "header: alg: not a string"},
	{"alg a list", `{"alg":["HS256"],"typ":"JWT"}`, "header: alg: not a string"},
	{"alg under another name", `{"Alg":"HS256","typ":"JWT"}`, "header: alg: not HS256"},
	{"alg given twice", `{"alg":"HS256","alg":"HS256"}`, "header: Property name given twice: char 15"},
	{"alg none, then right, the second name escaped", `{"alg":"none","al\u0067":"HS256"}`, "header: Property name given twice: char 14"},
	{"a name given twice in what is ignored", `{"alg":"HS256","jwk":{"k":1,"k":2}}`, "header: Property name given twice: char 28"},
	{"typ in lower case", `{"alg":"HS256","typ":"jwt"}`, "header: typ: not JWT"},
	{"typ of an access token of RFC 9068", `{"alg":"HS256","typ":"at+jwt"}`, "header: typ: not JWT"},
	{"typ empty", `{"alg":"HS256","typ":""}`, "header: typ: not JWT"},
	{"typ null", `{"alg":"HS256","typ":null}`, "header: typ: not JWT"},
	{"typ a list", `{"alg":"HS256","typ":["JWT"]}`, "header: typ: not JWT"},
	{"crit names a parameter", `{"alg":"HS256","crit":["exp"],"exp":1}`, "header: crit: no extension is understood"},
	{"crit names b64", `{"alg":"HS256","b64":true,"crit":["b64"]}`, "header: crit: no extension is understood"},
	{"crit empty", `{"alg":"HS256","crit":[]}`, "header: crit: no extension is understood"},
	{"crit null", `{"alg":"HS256","crit":null}`, "header: crit: no extension is understood"},
	{"b64 false", `{"alg":"HS256","b64":false}`, "header: b64: only an encoded payload is understood"},
	{"b64 a string", `{"alg":"HS256","b64":"true"}`, "header: b64: only an encoded payload is understood"},
	{"kid a number", `{"alg":"HS256","kid":1}`, "header: kid: not a string"},
	{"kid null", `{"alg":"HS256","kid":null}`, "header: kid: not a string"},
	{"a list", `["alg","HS256"]`, "header: not a JSON object"},
	{"a string", `"HS256"`, "header: not a JSON object"},
	{"null", `null`, "header: not a JSON object"},
	{"empty", ``, "header: Expecting value: char 0"},
	{"two objects", plainHeader + plainHeader, "header: Extra data: char 27"},
	{"a byte order mark", "\uFEFF" + plainHeader, "header: Expecting value: char 0"},
	{"not UTF-8", "{\"alg\":\"HS256\",\"x\":\"\xff\"}", "header: Invalid UTF-8: char 20"},
	{"a lone surrogate", `{"alg":"HS256","x":"\ud800"}`, "header: Lone surrogate escape: char 20"},
}

// goodHeaders are those that other libraries may write.
var goodHeaders = []struct{ name, header string }{
	{"ours", plainHeader},
	{"another order", `{"typ":"JWT","alg":"HS256"}`},
	{"spaces", `{ "alg" : "HS256", "typ" : "JWT" }`},
	{"no typ", `{"alg":"HS256"}`},
	{"escapes", `{"\u0061lg":"HS\u003256","typ":"JW\u0054"}`},
	{"a key id", `{"alg":"HS256","kid":"2026-11","typ":"JWT"}`},
	{"a key's address, which nobody visits", `{"alg":"HS256","jku":"https://example.com/keys","typ":"JWT"}`},
	{"a key, which nobody uses", `{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"},"typ":"JWT"}`},
	{"b64 true, which is the default", `{"alg":"HS256","b64":true}`},
	{"unknown parameters, one of them close to alg", `{"alg":"HS256","Alg":"none","Crit":["x"],"x":null}`},
}

func TestTokenHeaders(t *testing.T) {
	tokens := tokensAt(time.Unix(1500, 0), partsSecret)
	for _, row := range badHeaders {
		_, err := tokens.verify(forge(row.header, plainClaims), accessToken)
		if got := errText(err); got != row.want {
			t.Errorf("header: %s: got %s, want %s", row.name, got, row.want)
		}
	}
	for _, row := range goodHeaders {
		if _, err := tokens.verify(forge(row.header, plainClaims), accessToken); err != nil {
			t.Errorf("header: %s: got %v, want it accepted", row.name, err)
		}
	}
}

// badClaims are plainClaims with one thing changed, at 1500 seconds.
var badClaims = []struct{ name, old, new, want string }{
	{"exp is missing", `"exp":2000,`, ``, "exp: missing"},
	{"exp is under another name", `"exp"`, `"Exp"`, "exp: missing"},
	{"exp is past", `2000`, `1499`, "exp: token expired"},
	{"exp is now", `2000`, `1500`, "exp: token expired"},
	{"exp is half a second past", `2000`, `1499.5`, "exp: token expired"},
	{"exp is zero", `2000`, `0`, "exp: token expired"},
	{"exp is negative", `2000`, `-2000`, "exp: token expired"},
	{"exp is a string", `2000`, `"2000"`, "exp: not a number"},
	{"exp is null", `2000`, `null`, "exp: not a number"},
	{"exp is true", `2000`, `true`, "exp: not a number"},
	{"exp is a list", `2000`, `[2000]`, "exp: not a number"},
	{"exp is beyond every number", `2000`, `1e999`, "exp: number out of range"},
	{"exp is not JSON", `2000`, `Infinity`, "Expecting value: char 72"},
	{"nbf is a second ahead", `"iat"`, `"nbf":1501,"iat"`, "nbf: token not valid yet"},
	{"nbf is half a second ahead", `"iat"`, `"nbf":1500.5,"iat"`, "nbf: token not valid yet"},
	{"nbf is a string", `"iat"`, `"nbf":"1000","iat"`, "nbf: not a number"},
	{"nbf is null", `"iat"`, `"nbf":null,"iat"`, "nbf: not a number"},
	{"iat is a second ahead", `1000`, `1501`, "iat: token issued in the future"},
	{"iat is half a second ahead", `1000`, `1500.5`, "iat: token issued in the future"},
	{"iat is a string", `1000`, `"1000"`, "iat: not a number"},
	{"iat is null", `1000`, `null`, "iat: not a number"},
	{"iss is missing", `,"iss":"jwt-auth-api"`, ``, "iss: another issuer"},
	{"iss is another", `jwt-auth-api`, `other-api`, "iss: another issuer"},
	{"iss is in upper case", `jwt-auth-api`, `JWT-AUTH-API`, "iss: another issuer"},
	{"iss is longer", `jwt-auth-api`, `jwt-auth-api2`, "iss: another issuer"},
	{"iss is null", `"jwt-auth-api"`, `null`, "iss: not a string"},
	{"iss is a list", `"jwt-auth-api"`, `["jwt-auth-api"]`, "iss: not a string"},
	{"sub is missing", `"sub":"u1",`, ``, "sub: missing"},
	{"sub is under another name", `"sub"`, `"Sub"`, "sub: missing"},
	{"sub is null", `"u1"`, `null`, "sub: not a string"},
	{"sub is a number", `"u1"`, `1`, "sub: not a string"},
	{"sub is an object", `"u1"`, `{"id":"u1"}`, "sub: not a string"},
	{"type is the other route's", `access`, `refresh`, "type: another type of token"},
	{"type is missing", `"type":"access",`, ``, "type: another type of token"},
	{"type is in upper case", `"access"`, `"ACCESS"`, "type: another type of token"},
	{"type is null", `"access"`, `null`, "type: not a string"},
	{"type is a list", `"access"`, `["access"]`, "type: not a string"},
	{"aud is our issuer", `"iat"`, `"aud":"jwt-auth-api","iat"`, "aud: not for this audience"},
	{"aud is empty", `"iat"`, `"aud":"","iat"`, "aud: not for this audience"},
	{"aud is an empty list", `"iat"`, `"aud":[],"iat"`, "aud: not for this audience"},
	{"aud is null", `"iat"`, `"aud":null,"iat"`, "aud: not for this audience"},
	{"scopes is null", `["me"]`, `null`, "scopes: not a list"},
	{"scopes is a string", `["me"]`, `"me admin"`, "scopes: not a list"},
	{"scopes is an object", `["me"]`, `{"me":true}`, "scopes: not a list"},
	{"scopes has a number", `["me"]`, `["me",1]`, "scopes: not a string"},
	{"scopes has null before a string", `["me"]`, `[null,"me"]`, "scopes: not a string"},
	{"scopes has a list", `["me"]`, `[["me"]]`, "scopes: not a string"},
	{"jti is a number", `"j1"`, `1`, "jti: not a string"},
	{"jti is null", `"j1"`, `null`, "jti: not a string"},
	{"a name is given twice", `"sub":"u1"`, `"sub":"u1","sub":"u1"`, "Property name given twice: char 12"},
	{"a name is given twice, once escaped", `"sub":"u1"`, `"sub":"u1","s\u0075b":"u2"`, "Property name given twice: char 12"},
	{"a name is given twice in what is ignored", `"u1"`, `"u1","x":[{"a":1,"a":1}]`, "Property name given twice: char 24"},
	{"a list", plainClaims, `[` + plainClaims + `]`, "not a JSON object"},
	{"a string", plainClaims, `"u1"`, "not a JSON object"},
	{"null", plainClaims, `null`, "not a JSON object"},
	{"empty", plainClaims, ``, "Expecting value: char 0"},
	{"more than an object", `api"}`, `api"}]`, "Extra data: char 98"},
	{"a comma too many", `api"}`, `api",}`, "Expecting property name enclosed in double quotes: char 98"},
	{"cut off", `api"}`, `api"`, "Expecting ',' delimiter: char 97"},
	{"a byte order mark", `{"sub"`, "\uFEFF{\"sub\"", "Expecting value: char 0"},
	{"not UTF-8", `u1`, "\xc3\x28", "Invalid UTF-8: char 8"},
	{"a surrogate in UTF-8", `u1`, "\xed\xa0\x80", "Invalid UTF-8: char 8"},
	{"a lone surrogate", `u1`, `\udc00`, "Lone surrogate escape: char 8"},
	{"a control character", `u1`, "u\x00", "Invalid control character at: char 9"},
	{"past and another's: the end comes first", `2000,"iss":"jwt-auth-api"`, `1500,"iss":"x"`, "exp: token expired"},
	{"another's and about nobody: the issuer comes first", plainClaims, `{"type":"access","exp":2000,"iss":"x"}`, "iss: another issuer"},
	{"about nobody and of another type: the subject comes first", plainClaims, `{"type":"refresh","exp":2000,"iss":"jwt-auth-api"}`, "sub: missing"},
}

// goodClaims are plainClaims with one thing changed, at 1500 seconds.
var goodClaims = []struct{ name, old, new string }{
	{"as they are", `u1`, `u1`},
	{"exp is a second ahead", `2000`, `1501`},
	{"exp is a fraction of a second ahead", `2000`, `1500.25`},
	{"exp has an exponent", `2000`, `2.0E+3`},
	{"exp is far beyond 64 bits", `2000`, `1e30`},
	{"nbf is now", `"iat"`, `"nbf":1500,"iat"`},
	{"nbf is half a second past", `"iat"`, `"nbf":1499.5,"iat"`},
	{"iat is now", `1000`, `1500`},
	{"iat is missing", `"iat":1000,`, ``},
	{"jti is missing", `"jti":"j1",`, ``},
	{"jti is empty", `"j1"`, `""`},
	{"scopes is missing", `"scopes":["me"],`, ``},
	{"scopes is empty", `["me"]`, `[]`},
	{"scopes has three, and spaces", `["me"]`, `[ "me" , "admin","x" ]`},
	{"unknown claims", `"iat"`, `"name":"U","x":{"exp":null,"aud":[]},"Aud":"x","Exp":1,"SUB":null,"iat"`},
	{"spaces and line breaks", `{"sub":"u1",`, "\r\n{ \"sub\" :\t\"u1\" ,\n"},
	{"space at the end", `api"}`, "api\" }\n"},
	{"escapes", `"sub":"u1"`, `"\u0073ub":"\u0075\u0031"`},
	{"another order", `{"sub":"u1","scopes":["me"],`, `{"scopes":["me"],"sub":"u1",`},
}

func TestTokenClaims(t *testing.T) {
	tokens := tokensAt(time.Unix(1500, 0), partsSecret)
	for _, row := range badClaims {
		_, err := tokens.verify(forge(plainHeader, replaced(t, plainClaims, row.old, row.new)), accessToken)
		if got := errText(err); got != row.want {
			t.Errorf("claims: %s: got %s, want %s", row.name, got, row.want)
		}
	}
	for _, row := range goodClaims {
		c, err := tokens.verify(forge(plainHeader, replaced(t, plainClaims, row.old, row.new)), accessToken)
		if err != nil || c.subject != "u1" {
			t.Errorf("claims: %s: got subject %q and %v, want u1", row.name, c.subject, err)
		}
	}
}

// badSegments are signed as they stand, so that only their spelling is against them. eyJhIjoxfQ is {"a":1}.
var badSegments = []struct{ name, input, want string }{
	{"a padded header", b64(`{"alg":"HS256"}x`) + "==.eyJhIjoxfQ", "header: illegal base64 data"},
	{"a line feed in the header", "eyJhbGciOiJIUzI1NiIs\nInR5cCI6IkpXVCJ9.eyJhIjoxfQ", "header: line break in base64url"},
	{"a stray bit in the header", "eyJhbGciOiJIUzI1NiIsImEiOjF9AB.eyJhIjoxfQ", "header: illegal base64 data"},
	{"a padded payload", encodedHeader + ".eyJhIjoxfQ==", "payload: illegal base64 data"},
	{"a line feed before the header", "\n" + encodedHeader + ".eyJhIjoxfQ", "header: line break in base64url"},
	{"a line feed before the payload", encodedHeader + ".\neyJhIjoxfQ", "payload: line break in base64url"},
	{"a carriage return before the payload", encodedHeader + ".\reyJhIjoxfQ", "payload: line break in base64url"},
	{"a line feed in the payload", encodedHeader + ".eyJh\nIjoxfQ", "payload: line break in base64url"},
	{"a line feed in a payload of whole groups of four", encodedHeader + ".eyJh\nYiI6MTB9", "payload: line break in base64url"},
	{"a carriage return at the end of the payload", encodedHeader + ".eyJhIjoxfQ\r", "payload: line break in base64url"},
	{"a space in the payload", encodedHeader + ".eyJh IjoxfQ", "payload: illegal base64 data"},
	{"a stray bit in the payload", encodedHeader + ".eyJhIjoxfR", "payload: illegal base64 data"},
	{"the other alphabet in the payload", encodedHeader + ".eyJhIjoiPz8+In0", "payload: illegal base64 data"},
	{"a payload of one character", encodedHeader + ".e", "payload: illegal base64 data"},
	{"no header", ".eyJhIjoxfQ", "header: Expecting value: char 0"},
	{"one segment", encodedHeader, "token has not exactly three segments"},
	{"three segments", encodedHeader + ".eyJhIjoxfQ.eyJhIjoxfQ", "token has not exactly three segments"},
	{"three segments, the last empty", encodedHeader + ".eyJhIjoxfQ.", "token has not exactly three segments"},
}

func TestTokenSegments(t *testing.T) {
	key := newHMACKey([]byte(partsSecret))
	for _, row := range badSegments {
		payload, err := key.open(signed(partsSecret, row.input))
		if got := errText(err); got != row.want || payload != "" {
			t.Errorf("%s: got %q and %s, want %s", row.name, payload, got, row.want)
		}
	}
	for _, token := range []string{"", "x", "..", "...", encodedHeader} {
		if payload, err := key.open(token); err == nil || payload != "" {
			t.Errorf("token %q: got %q and %v, want an error alone", token, payload, err)
		}
	}
}

// alterations are done to the reference's refresh token, whose signature has characters of base64url's own alphabet.
var alterations = []struct{ name, old, new, want string }{
	{"another first character of the signature", ".c1Z8m", ".d1Z8m", "signature does not hold"},
	{"another last character of the signature", "Bpfa0", "Bpfb0", "signature does not hold"},
	{"a stray bit in the signature's last character", "Bpfa0", "Bpfa1", "signature does not hold"},
	{"a padded signature", "Bpfa0", "Bpfa0=", "signature does not hold"},
	{"a line feed after the signature", "Bpfa0", "Bpfa0\n", "signature does not hold"},
	{"a line break in the signature", "ukqJuBp", "ukq\r\nJuBp", "signature does not hold"},
	{"a space before the signature", ".c1Z8m", ". c1Z8m", "signature does not hold"},
	{"standard base64 in the signature", "m_O6", "m/O6", "signature does not hold"},
	{"standard base64 in the signature", "AR-V", "AR+V", "signature does not hold"},
	{"a percent escape in the signature", "m_O6", "m%5FO6", "signature does not hold"},
	{"a character more in the signature", "Bpfa0", "Bpfa0A", "signature does not hold"},
	{"a character less in the signature", "Bpfa0", "Bpfa", "signature does not hold"},
	{"no signature", "c1Z8m_O6QZy4rFSJccr7AR-V3RmO7lKcAukqJuBpfa0", "", "signature does not hold"},
	{"another payload", ".eyJzdWIiOiJhZG1pbi0w", ".eyJzdWIiOiJhZG1pbi0x", "signature does not hold"},
	{"another header", "eyJhbGciOiJIUzI1NiIs", "eyJhbGciOiJub25lIiwi", "signature does not hold"},
	{"a padded payload", "In0.", "In0=.", "signature does not hold"},
	{"a space before the token", "eyJhbG", " eyJhbG", "signature does not hold"},
	{"a dot before the token", "eyJhbG", ".eyJhbG", "token has not exactly three segments"},
	{"a dot after the token", "Bpfa0", "Bpfa0.", "token has not exactly three segments"},
	{"no dot before the signature", ".c1Z8m", "c1Z8m", "token has not exactly three segments"},
}

func TestTokenAltered(t *testing.T) {
	const secret = "change-me-to-a-long-random-string-at-least-32-bytes-please"
	claims := `{"sub":"admin-0","scopes":["me","admin"],"type":"refresh","jti":"cda77ced-ec2e-430d-a806-f1ee83293bdf",` +
		`"iat":1795503214,"exp":1796108014,"iss":"jwt-auth-api"}`
	token := signed(secret, b64(plainHeader)+"."+b64(claims))
	tokens := tokensAt(time.Unix(1795503214, 0), secret)
	if _, err := tokens.verify(token, refreshToken); err != nil {
		t.Fatalf("as it is: got %v, want it accepted", err)
	}
	for _, row := range alterations {
		_, err := tokens.verify(replaced(t, token, row.old, row.new), refreshToken)
		if got := errText(err); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

// TestTokenLength pads tokens with a claim that nobody knows, up to the bound and a byte beyond.
func TestTokenLength(t *testing.T) {
	key := newHMACKey([]byte(partsSecret))
	for _, row := range []struct {
		payload, length int
		want            string
	}{
		{3011, 4096, "accepted"},
		{3012, 4097, "token longer than 4096 bytes"},
	} {
		payload := `{"x":"` + strings.Repeat("x", row.payload-8) + `"}`
		token := forge(plainHeader, payload)
		got, err := key.open(token)
		if len(token) != row.length || errText(err) != row.want || (got == payload) != (err == nil) {
			t.Errorf("a token of %d bytes: got %s, want %d bytes %s", len(token), errText(err), row.length, row.want)
		}
	}
}

// TestSign holds what sign writes against crypto/hmac and encoding/base64.
func TestSign(t *testing.T) {
	secret := []byte(partsSecret)
	key := newHMACKey(secret)
	clear(secret) // The key is not to change with it.
	for n := range 100 {
		payload := strings.Repeat("\xff", n)
		want := signed(partsSecret, b64(plainHeader)+"."+b64(payload))
		if got := key.sign([]byte(payload)); got != want {
			t.Errorf("sign %d bytes: got %s, want %s", n, got, want)
		}
		if got, err := key.open(want); got != payload || err != nil {
			t.Errorf("open a token of %d bytes: got %q and %v, want them back", n, got, err)
		}
	}
}

// TestKeyConcurrently is for the race detector, and for buffers that two tokens would share.
func TestKeyConcurrently(t *testing.T) {
	key := newHMACKey([]byte(partsSecret))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			payload := strings.Repeat(fmt.Sprint(i), 50+i)
			for range 200 {
				token := key.sign([]byte(payload))
				got, err := key.open(token)
				if got != payload || err != nil {
					t.Errorf("got %q and %v, want %q", got, err, payload)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestPreviousKeys rotates a key: the old one verifies and does not sign.
func TestPreviousKeys(t *testing.T) {
	const old = "the secret of last year, still to be honoured"
	tokens := tokensAt(time.Unix(1500, 0), partsSecret, old)
	body := b64(plainHeader) + "." + b64(plainClaims)
	for _, row := range []struct{ name, token, want string }{
		{"today's key", signed(partsSecret, body), "accepted"},
		{"the previous key", signed(old, body), "accepted"},
		{"a key of nobody's", signed("x"+old, body), "signature does not hold"},
		{"the previous key and alg none", signed(old, b64(`{"alg":"none"}`)+"."+b64(plainClaims)), "header: alg: not HS256"},
		{"today's key and alg none", signed(partsSecret, b64(`{"alg":"none"}`)+"."+b64(plainClaims)), "header: alg: not HS256"},
		{"the previous key and a token that is past", signed(old, b64(plainHeader)+"."+b64(`{"exp":1}`)), "exp: token expired"},
	} {
		_, err := tokens.verify(row.token, accessToken)
		if got := errText(err); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
	pair := tokens.issuePair(user{id: "u1"})
	if _, err := tokensAt(time.Unix(1500, 0), partsSecret).verify(pair.AccessToken, accessToken); err != nil {
		t.Errorf("a new token under today's key: got %v, want it accepted", err)
	}
}

var uuidV4 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// payloadOf decodes a token without asking whether it holds.
func payloadOf(t *testing.T, token string) string {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(payload)
}

// TestIssuePair wants every byte of a token but the jti, and whole seconds from a clock that has more.
func TestIssuePair(t *testing.T) {
	tokens := tokensAt(time.Unix(1000, 999_999_999), partsSecret)
	seen := map[string]bool{}
	for _, row := range []struct {
		scopes scopes
		list   string
	}{
		{"me admin", `["me","admin"]`},
		{"me", `["me"]`},
		{"", `[]`},
	} {
		pair := tokens.issuePair(user{id: "u1", scopes: row.scopes})
		if pair.TokenType != "bearer" || pair.ExpiresIn != 900 {
			t.Errorf("got %s and %d, want bearer and 900", pair.TokenType, pair.ExpiresIn)
		}
		for token, end := range map[string]string{
			pair.AccessToken:  `,"iat":1000,"exp":1900,"iss":"jwt-auth-api"}`,
			pair.RefreshToken: `,"iat":1000,"exp":605800,"iss":"jwt-auth-api"}`,
		} {
			typ := map[bool]string{true: "access", false: "refresh"}[token == pair.AccessToken]
			got := payloadOf(t, token)
			c, err := tokens.verify(token, typ)
			want := `{"sub":"u1","scopes":` + row.list + `,"type":"` + typ + `","jti":"` + c.id + `"` + end
			if err != nil || got != want || !uuidV4.MatchString(c.id) || seen[c.id] {
				t.Errorf("%s token: got %s (%v), want %s, with a UUID of its own", typ, got, err, want)
			}
			seen[c.id] = true
		}
	}
}

// TestUUID looks at so many that each digit takes every value that it can have, and no two always have the same.
func TestUUID(t *testing.T) {
	seen := map[string]bool{}
	var digits [36]string // of all UUIDs, one after the other
	for range 1000 {
		id := newUUID()
		if !uuidV4.MatchString(id) || seen[id] {
			t.Fatalf("got %s, want a UUID of version 4 that was not there before", id)
		}
		seen[id] = true
		for i := range id {
			digits[i] += id[i : i+1]
		}
	}
	for i, values := range digits {
		want := 16
		switch i {
		case 8, 13, 14, 18, 23:
			continue // the hyphens and the version
		case 19:
			want = 4
		}
		different := strings.Split(values, "")
		slices.Sort(different)
		if got := len(slices.Compact(different)); got != want || slices.Index(digits[:], values) != i {
			t.Errorf("digit %d: got %d values, want %d, and in an order of its own", i, got, want)
		}
	}
}

func TestAppendJSONString(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"empty", ``, `""`},
		{"from space to tilde as it is", ` <&>/'~`, `" <&>/'~"`},
		{"a quote", `a"b`, `"a\"b"`},
		{"a backslash", `a\b`, `"a\\b"`},
		{"a backslash and u", `\u0041`, `"\\u0041"`},
		{"a line feed", "a\nb", `"a\nb"`},
		{"a control character", "\x1f", `"\u001f"`},
		{"NUL", "\x00", `"\u0000"`},
		{"beyond ASCII", "é𝄞", `"é𝄞"`},
		{"what JavaScript takes for a line's end", "\u2028", `"\u2028"`},
	} {
		got := string(appendJSONString([]byte("before"), row.text))
		if got != "before"+row.want {
			t.Errorf("%s: got %s, want before%s", row.name, got, row.want)
		}
		back, err := parseClaims(`{"sub":` + row.want + `}`)
		if err != nil || back.subject != row.text {
			t.Errorf("%s, read again: got %q and %v, want %q", row.name, back.subject, err, row.text)
		}
	}
}

// badJSON holds texts with the words and positions of Python's json, which the original answers with, and of the four
// refusals that Python does not know: two equal names, lone surrogates, what is not UTF-8, and too many levels.
var badJSON = []struct{ name, text, want string }{
	{"nothing", ``, "Expecting value: char 0"},
	{"space alone", " \t\r\n", "Expecting value: char 4"},
	{"a word", `hello`, "Expecting value: char 0"},
	{"a word cut off", `tru`, "Expecting value: char 0"},
	{"a word in another letter case", `Null`, "Expecting value: char 0"},
	{"a word with a letter too many", `nulll`, "Extra data: char 4"},
	{"a number that is none", `NaN`, "Expecting value: char 0"},
	{"a negative number that is none", `-Infinity`, "Expecting value: char 0"},
	{"single quotes", `{'a':1}`, "Expecting property name enclosed in double quotes: char 1"},
	{"a brace alone", `{`, "Expecting property name enclosed in double quotes: char 1"},
	{"a brace and a space", `{ `, "Expecting property name enclosed in double quotes: char 2"},
	{"a name that is a number", `{1:2}`, "Expecting property name enclosed in double quotes: char 1"},
	{"a name alone", `{"a"`, "Expecting ':' delimiter: char 4"},
	{"no colon", `{"a" 1}`, "Expecting ':' delimiter: char 5"},
	{"no value", `{"a":}`, "Expecting value: char 5"},
	{"no value at the end", `{"a": `, "Expecting value: char 6"},
	{"no comma in an object", `{"a":1 "b":2}`, "Expecting ',' delimiter: char 7"},
	{"no end of an object", `{"a":1 `, "Expecting ',' delimiter: char 7"},
	{"the wrong end of an object", `{"a":1]`, "Expecting ',' delimiter: char 6"},
	{"a comma too many in an object", `{"a":1, }`, "Expecting property name enclosed in double quotes: char 8"},
	{"a comma alone in an object", `{,}`, "Expecting property name enclosed in double quotes: char 1"},
	{"a bracket alone", `[`, "Expecting value: char 1"},
	{"no comma in a list", `[1 2]`, "Expecting ',' delimiter: char 3"},
	{"no end of a list", `[1,2`, "Expecting ',' delimiter: char 4"},
	{"the wrong end of a list", `[[1,2],[3,4}`, "Expecting ',' delimiter: char 11"},
	{"a comma too many in a list", `[1,]`, "Expecting value: char 3"},
	{"a comma at a list's beginning", `[,1]`, "Expecting value: char 1"},
	{"a comment", `{}//`, "Extra data: char 2"},
	{"a second object", `{} {}`, "Extra data: char 3"},
	{"a closing brace alone", `}`, "Expecting value: char 0"},
	{"a NUL at the end", "{}\x00", "Extra data: char 2"},
	{"a form feed for a space", "{\f}", "Expecting property name enclosed in double quotes: char 1"},
	{"a vertical tab at the end", "1\v", "Extra data: char 1"},
	{"a no-break space", "\u00a01", "Expecting value: char 0"},
	{"a byte order mark", "\uFEFF{}", "Expecting value: char 0"},
	{"a minus alone", `[-]`, "Expecting value: char 1"},
	{"a plus", `+1`, "Expecting value: char 0"},
	{"a dot first", `.5`, "Expecting value: char 0"},
	{"a dot last", `{"a":1.}`, "Expecting ',' delimiter: char 6"},
	{"two dots", `1.5.`, "Extra data: char 3"},
	{"a colon after a number", `{"a":1:}`, "Expecting ',' delimiter: char 6"},
	{"a slash after a number", `{"a":1/}`, "Expecting ',' delimiter: char 6"},
	{"a zero first", `{"a":01}`, "Expecting ',' delimiter: char 6"},
	{"a zero first, negative", `-00`, "Extra data: char 2"},
	{"an exponent without digits", `{"a":1e}`, "Expecting ',' delimiter: char 6"},
	{"a signed exponent without digits", `1E+`, "Extra data: char 1"},
	{"a fraction and an exponent without digits", `1.5e-x`, "Extra data: char 3"},
	{"an underscore", `1_0`, "Extra data: char 1"},
	{"a hexadecimal number", `0x10`, "Extra data: char 1"},
	{"digits beyond ASCII", "\u0661", "Expecting value: char 0"},
	{"a string that does not end", `{"a":"b}`, "Unterminated string starting at: char 5"},
	{"a name that does not end", `{"a`, "Unterminated string starting at: char 1"},
	{"a backslash at the end", `{"a":"\`, "Unterminated string starting at: char 5"},
	{"an escaped quote at the end", `"\"`, "Unterminated string starting at: char 0"},
	{"a line feed in a string", "\"a\nb\"", "Invalid control character at: char 2"},
	{"the last control character", "\"\x1f\"", "Invalid control character at: char 1"},
	{"a NUL in a name", "{\"\x00\":1}", "Invalid control character at: char 2"},
	{"an escape that is none", `"ab\x41"`, `Invalid \escape: char 3`},
	{"an escape in upper case", `"\N"`, `Invalid \escape: char 1`},
	{"an escape of a single quote", `"\'"`, `Invalid \escape: char 1`},
	{"\\u at the end", `"\u`, `Invalid \uXXXX escape: char 2`},
	{"\\u with three digits", `"\u123"`, `Invalid \uXXXX escape: char 2`},
	{"\\u with its digits at the end", `"\u1234`, `Invalid \uXXXX escape: char 2`},
	{"\\u with its digits and a letter at the end", `"\u1234x`, "Unterminated string starting at: char 0"},
	{"\\u with a space", `"\u12 4"`, `Invalid \uXXXX escape: char 2`},
	{"\\u with a sign", `"\u+123"`, `Invalid \uXXXX escape: char 2`},
	{"\\u with a letter", `"\u00g0"`, `Invalid \uXXXX escape: char 2`},
	{"the second \\u of a pair with a letter", `"\ud83d\u00zz"`, `Invalid \uXXXX escape: char 8`},
	{"the second \\u of a pair cut off", `"\ud83d\u`, `Invalid \uXXXX escape: char 8`},
	{"the second \\u of a pair with its digits at the end", `"\ud83d\ude00`, `Invalid \uXXXX escape: char 8`},
	{"what comes first counts: an escape, then a line feed", "\"\\x\n", `Invalid \escape: char 1`},
	{"positions count code points", `{"é𝄞":1 x}`, "Expecting ',' delimiter: char 8"},
	{"the first of two equal surrogates", `"\ud83d\ud83d"`, "Lone surrogate escape: char 1"},
	{"a high surrogate alone", `"a\ud83d"`, "Lone surrogate escape: char 2"},
	{"a high surrogate before a letter", `"\ud83da"`, "Lone surrogate escape: char 1"},
	{"a high surrogate before \\u0041", `"\ud83d\u0041"`, "Lone surrogate escape: char 1"},
	{"a low surrogate alone", `"\ude00"`, "Lone surrogate escape: char 1"},
	{"a pair in the wrong order", `"\ude00\ud83d"`, "Lone surrogate escape: char 1"},
	{"a lone surrogate in a name", `{"\uDFFF":1}`, "Lone surrogate escape: char 2"},
	{"a lone surrogate in what is ignored", `[{"a":["\uD800"]}]`, "Lone surrogate escape: char 8"},
	{"a byte that UTF-8 does not have", "{\"a\":\"é\xff\"}", "Invalid UTF-8: char 7"},
	{"Latin-1", "{\"\xe9\":1}", "Invalid UTF-8: char 2"},
	{"an overlong slash", "\"\xc0\xaf\"", "Invalid UTF-8: char 1"},
	{"a surrogate in UTF-8", "\"\xed\xa0\x80\"", "Invalid UTF-8: char 1"},
	{"UTF-8 cut off", "\"\xe2\x82", "Invalid UTF-8: char 1"},
	{"UTF-8 cut off by a quote", "\"a\xf0\x9f\"", "Invalid UTF-8: char 2"},
	{"UTF-8 cut off by a letter", "\"\xc3a\"", "Invalid UTF-8: char 1"},
	{"UTF-8 cut off by an escape", "\"\xe2\x82\\u00ac\"", "Invalid UTF-8: char 1"},
	{"a byte that continues nothing", "\"a\x80\"", "Invalid UTF-8: char 2"},
	{"a byte too many after a character", "\"é\xa9\"", "Invalid UTF-8: char 2"},
	{"an overlong NUL of three bytes", "\"\xe0\x80\x80\"", "Invalid UTF-8: char 1"},
	{"an overlong quote of four bytes", "\"\xf0\x80\x80\xa2\"", "Invalid UTF-8: char 1"},
	{"the last surrogate in UTF-8", "\"\xed\xbf\xbf\"", "Invalid UTF-8: char 1"},
	{"what is beyond U+10FFFF", "\"\xf4\x90\x80\x80\"", "Invalid UTF-8: char 1"},
	{"a character of five bytes", "\"\xf8\x88\x80\x80\x80\"", "Invalid UTF-8: char 1"},
	{"a byte that is not UTF-8 after an escape", "\"\\n\xff\"", "Invalid UTF-8: char 3"},
	{"a byte that is not UTF-8 in what is ignored", "[{\"a\":[\"\xff\"]}]", "Invalid UTF-8: char 8"},
	{"what comes first counts: a byte that is not UTF-8, then a line feed", "\"\xff\n\"", "Invalid UTF-8: char 1"},
	{"UTF-16", "{\x00}\x00\xff\xfe", "Expecting property name enclosed in double quotes: char 1"},
	{"the replacement character, then what it stands for", "\"\uFFFD\xff\"", "Invalid UTF-8: char 2"},
	{"what is not UTF-8 outside of strings", "[\xff]", "Expecting value: char 1"},
	{"what is not UTF-8 first", "\xff{}", "Expecting value: char 0"},
	{"what is not UTF-8 for a name", "{\xff:1}", "Expecting property name enclosed in double quotes: char 1"},
	{"what is not UTF-8 before a colon", "{\"a\"\xff:1}", "Expecting ':' delimiter: char 4"},
	{"what is not UTF-8 after a number", "{\"a\":1\xff}", "Expecting ',' delimiter: char 6"},
	{"what is not UTF-8 in a word", "[tru\xff]", "Expecting value: char 1"},
	{"what is not UTF-8 last", "{}\xff", "Extra data: char 2"},
	{"a name given twice", `{"a":1,"b":2,"a":1}`, "Property name given twice: char 13"},
	{"an empty name given twice", `{"":1,"":1}`, "Property name given twice: char 6"},
	{"a name given twice, once escaped", `{"a":1,"\u0061":2}`, "Property name given twice: char 7"},
	{"a name given twice in an object of an object", `{"a":{"b":{"c":1,"c":2}}}`, "Property name given twice: char 17"},
	{"a name given twice in an object of a list", `[[],[{"c":1,"c":2}]]`, "Property name given twice: char 12"},
	{"a name given twice after an inner object that has it", `{"a":{"a":1},"a":2}`, "Property name given twice: char 13"},
	{"the first of nine names again", `{"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"1":0}`, "Property name given twice: char 55"},
	{"the eighth of eight names again", `{"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"8":0}`, "Property name given twice: char 49"},
	{"the ninth of nine names again", `{"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"9":0}`, "Property name given twice: char 55"},
	{"the ninth of ten names again", `{"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"A":0,"9":0}`, "Property name given twice: char 61"},
	{"the tenth of ten names again", `{"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"A":0,"A":0}`, "Property name given twice: char 61"},
	{"a name again among others of its length and last letter", `{"xa":0,"ya":0,"za":0,"ya":0}`, "Property name given twice: char 22"},
	{"the tenth of ten such names again", `{"Aa":0,"Ba":0,"Ca":0,"Da":0,"Ea":0,"Fa":0,"Ga":0,"Ha":0,"Ia":0,"Ja":0,"Ja":0}`, "Property name given twice: char 71"},
	{"a thousand lists and one", strings.Repeat("[", 1001), "Too many levels: char 1000"},
	{"a thousand objects and one", strings.Repeat(`{"a":`, 1000) + "{}", "Too many levels: char 5000"},
	{"more lists than a stack has room for", strings.Repeat("[", 1<<20), "Too many levels: char 1000"},
	{"an object in a list", `[{}]`, "not a JSON object"},
	{"a string", ` "a" `, "not a JSON object"},
	{"a number", `-0.5e+1`, "not a JSON object"},
	{"true", `true`, "not a JSON object"},
	{"null", `null`, "not a JSON object"},
}

func ignore(string, jsonValue) error { return nil }

func TestJSONRefused(t *testing.T) {
	for _, row := range badJSON {
		if got := errText(readObject(row.text, ignore)); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

// goodJSON holds texts of one member, and what is read of it.
var goodJSON = []struct {
	name, text string
	kind       jsonKind
	value      string
}{
	{"a string", `{"a":"b"}`, jsonString, `b`},
	{"an empty string", `{"a":""}`, jsonString, ``},
	{"space everywhere", " \t\r\n{ \"a\"\t:\r\n\"b\" } \n", jsonString, `b`},
	{"every escape", `{"a":"x\"\\\/\b\f\n\r\t\u0041y"}`, jsonString, "x\"\\/\b\f\n\r\tAy"},
	{"an escape first and last", `{"a":"\nx\n"}`, jsonString, "\nx\n"},
	{"an escaped name", `{"\u0061":"b"}`, jsonString, `b`},
	{"an escaped NUL", `{"a":"\u0000"}`, jsonString, "\x00"},
	{"hexadecimal digits in both letter cases", `{"a":"\u20aC\u20Ac"}`, jsonString, "€€"},
	{"all four digits of an escape", `{"a":"\u1234"}`, jsonString, "\u1234"},
	{"a surrogate pair", `{"a":"\ud83d\ude00!"}`, jsonString, "😀!"},
	{"the replacement character", "{\"a\":\"\uFFFD\"}", jsonString, "\uFFFD"},
	{"the replacement character, escaped", `{"a":"\uFFFD"}`, jsonString, "\uFFFD"},
	{"DEL and beyond ASCII", "{\"a\":\"\x7fé𝄞\"}", jsonString, "\x7fé𝄞"},
	{"a byte order mark in a string", "{\"a\":\"\uFEFF\"}", jsonString, "\uFEFF"},
	{"the least characters of two to four bytes", "{\"a\":\"\u0080\u0800\U00010000\"}", jsonString, "\u0080\u0800\U00010000"},
	{"the greatest characters of one to four bytes", "{\"a\":\"\x7f\u07ff\uffff\U0010ffff\"}", jsonString, "\x7f\u07ff\uffff\U0010ffff"},
	{"the characters on both sides of the surrogates", "{\"a\":\"\ud7ff\ue000\"}", jsonString, "\ud7ff\ue000"},
	{"the surrogate pairs of the first and the last character", `{"a":"\ud800\udc00\udbff\udfff"}`, jsonString, "\U00010000\U0010ffff"},
	{"zero", `{"a":0}`, jsonNumber, `0`},
	{"minus zero", `{"a":-0}`, jsonNumber, `-0`},
	{"all digits", `{"a":1234567890}`, jsonNumber, `1234567890`},
	{"nine first", `{"a":9}`, jsonNumber, `9`},
	{"a fraction and an exponent", `{"a":-12.05e+30 }`, jsonNumber, `-12.05e+30`},
	{"a zero and a fraction", `{"a":0.0}`, jsonNumber, `0.0`},
	{"an exponent of one digit", `{"a":1e5}`, jsonNumber, `1e5`},
	{"an exponent in upper case", `{"a":0E-0}`, jsonNumber, `0E-0`},
	{"true", `{"a":true}`, jsonLiteral, `true`},
	{"false", `{"a":false}`, jsonLiteral, `false`},
	{"null", `{"a":null}`, jsonLiteral, `null`},
	{"a list", `{"a":[1, "b" ,{}, []] }`, jsonArray, `[1, "b" ,{}, []]`},
	{"an empty list with a space", `{"a":[ ]}`, jsonArray, `[ ]`},
	{"an object", `{"a":{"b": 1 , "c":{}} }`, jsonObject, `{"b": 1 , "c":{}}`},
	{"one name in several objects", `{"a":[{"a":1},{"a":1}]}`, jsonArray, `[{"a":1},{"a":1}]`},
	{"ten names of one length and last letter", `{"a":{"Aa":0,"Ba":0,"Ca":0,"Da":0,"Ea":0,"Fa":0,"Ga":0,"Ha":0,"Ia":0,"Ja":0}}`, jsonObject, `{"Aa":0,"Ba":0,"Ca":0,"Da":0,"Ea":0,"Fa":0,"Ga":0,"Ha":0,"Ia":0,"Ja":0}`},
	{"a thousand levels", `{"a":` + strings.Repeat("[", 999) + strings.Repeat("]", 999) + `}`, jsonArray, strings.Repeat("[", 999) + strings.Repeat("]", 999)},
	{"many objects on one level", `{"a":[{}` + strings.Repeat(`,{}`, 2000) + `]}`, jsonArray, `[{}` + strings.Repeat(`,{}`, 2000) + `]`},
	{"many lists on one level", `{"a":[[]` + strings.Repeat(`,[0]`, 2000) + `]}`, jsonArray, `[[]` + strings.Repeat(`,[0]`, 2000) + `]`},
}

func TestJSONAccepted(t *testing.T) {
	for _, row := range goodJSON {
		var got []jsonValue
		err := readObject(row.text, func(name string, v jsonValue) error {
			if name != "a" {
				t.Errorf("%s: got the name %q, want a", row.name, name)
			}
			got = append(got, v)
			return nil
		})
		if err != nil || !slices.Equal(got, []jsonValue{{row.kind, row.value}}) {
			t.Errorf("%s: got %v and %v, want kind %d and %q", row.name, got, err, row.kind, row.value)
		}
	}
}

// TestJSONMembers looks at the order of members, at names beyond the eight that need no map, and at a member that is
// refused.
func TestJSONMembers(t *testing.T) {
	var text, want, got []string
	for i := range 30 {
		name := fmt.Sprintf("n%d", i)
		want = append(want, name)
		text = append(text, fmt.Sprintf("%q:%d", name, i))
	}
	object := "{" + strings.Join(text, ",") + "}"
	collect := func(name string, v jsonValue) error {
		got = append(got, name)
		return nil
	}
	if err := readObject(object, collect); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q and %v, want %q", got, err, want)
	}
	enough := errors.New("enough")
	n := 0
	stop := func(string, jsonValue) error {
		n++
		return enough
	}
	if err := readObject(object, stop); err != enough || n != 1 {
		t.Errorf("a refused member: got %v after %d members, want %v after 1", err, n, enough)
	}
	if err := readObject(`{}`, stop); err != nil || n != 1 {
		t.Errorf("an empty object: got %v and %d members, want none", err, n-1)
	}
	if err := readObject(` "a" `, stop); err != errNotObject {
		t.Errorf("a string: got %v, want %v", err, errNotObject)
	}
}

// badAddresses are refused in the words of email-validator.
var badAddresses = []struct{ name, text, want string }{
	{"nothing", ``, "An email address must have an @-sign."},
	{"no @", `user.example.com`, "An email address must have an @-sign."},
	{"no local part", `@example.com`, "There must be something before the @-sign."},
	{"no domain", `user@`, "There must be something after the @-sign."},
	{"an @ alone", `@`, "There must be something before the @-sign."},
	{"two @", `user@home@example.com`, "The part after the @-sign contains invalid characters: '@'."},
	{"a name and angle brackets", `User <user@example.com>`, "A display name and angle brackets around the email address are not permitted here."},
	{"angle brackets", `<user@example.com>`, "A display name and angle brackets around the email address are not permitted here."},
	{"a space before", ` user@example.com`, "The email address contains invalid characters before the @-sign: SPACE."},
	{"a space after", `user@example.com `, "The part after the @-sign contains invalid characters: SPACE."},
	{"a space within", `us er@example.com`, "The email address contains invalid characters before the @-sign: SPACE."},
	{"a tab", "us\ter@example.com", "The email address contains invalid characters before the @-sign: U+0009."},
	{"a line feed at the end", "user@example.com\n", "Carriage return and line feed characters are not allowed"},
	{"a carriage return and no @", "user\r", "Carriage return and line feed characters are not allowed"},
	{"NUL", "us\x00er@example.com", "The email address contains invalid characters before the @-sign: U+0000."},
	{"DEL", "us\x7fer@example.com", "The email address contains invalid characters before the @-sign: U+007F."},
	{"a quoted local part", `"user"@example.com`, "Quoting the part before the @-sign is not allowed here."},
	{"a quote", `us"er@example.com`, `The email address contains invalid characters before the @-sign: '"'.`},
	{"a comment", `user(home)@example.com`, "The email address contains invalid characters before the @-sign: '(', ')'."},
	{"each bad character once, sorted as shown", `\a),)(:@example.com`, `The email address contains invalid characters before the @-sign: "\", '(', ')', ',', ':'.`},
	{"brackets, a semicolon and a space", `a[b] ;@example.com`, "The email address contains invalid characters before the @-sign: ';', '[', ']', SPACE."},
	{"a dot first", `.user@example.com`, "An email address cannot start with a period."},
	{"a dot last", `user.@example.com`, "An email address cannot have a period immediately before the @-sign."},
	{"a dot alone", `.@example.com`, "An email address cannot have a period immediately before the @-sign."},
	{"two dots", `us..er@example.com`, "An email address cannot have two periods in a row."},
	{"a local part of 65 octets", strings.Repeat("u", 65) + `@example.com`, "The email address is too long before the @-sign (1 character too many)."},
	{"a local part of 66 octets in 33 letters", strings.Repeat("é", 33) + `@example.com`, "The email address is too long before the @-sign (2 characters too many)."},
	{"a zero width space", "us\u200ber@example.com", "The email address contains unsafe characters: U+200B."},
	{"a right-to-left override", "us\u202eer@example.com", "The email address contains unsafe characters: U+202E."},
	{"a byte order mark", "\uFEFFuser@example.com", "The email address contains unsafe characters: U+FEFF."},
	{"a soft hyphen", "us\u00ader@example.com", "The email address contains unsafe characters: U+00AD."},
	{"a Hangul filler, which is a letter that nobody sees", "us\u3164er@example.com", "The email address contains unsafe characters: 'ㅤ'."},
	{"a variation selector", "us\ufe0fer@example.com", "The email address contains unsafe characters: U+FE0F."},
	{"a private character", "us\ue000er@example.com", "The email address contains unsafe characters: U+E000."},
	{"what stands for broken UTF-8", "us\uFFFDer@example.com", "The email address contains unsafe characters: '\uFFFD'."},
	{"an emoji", "us😀er@example.com", "The email address contains unsafe characters: '😀'."},
	{"a no-break space", "us\u00a0er@example.com", "The email address contains unsafe characters: U+00A0."},
	{"a mark first", "\u0301user@example.com", "The email address contains unsafe characters: U+0301."},
	{"a reserved name with a long s", "u@example.te\u017ft", "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
	{"a mark after a dot", "us.\u0301er@example.com", "The email address contains unsafe characters: U+0301."},
	{"each unsafe character once, by code point", "b\u202e\u200b\u202e\u200bo@example.com", "The email address contains unsafe characters: U+200B, U+202E."},
	{"a mark first in the domain", "user@\u0301example.com", "The email address contains unsafe characters: U+0301."},
	{"a mark first in a later label", "user@example.\u0301com", "The email address contains unsafe characters: U+0301."},
	{"an emoji in the domain", "user@ex😀ample.com", "The email address contains unsafe characters: '😀'."},
	{"an underscore in the domain", `user@ex_ample.com`, "The part after the @-sign contains invalid characters: '_'."},
	{"a brace in the domain", `user@{example}.com`, "The part after the @-sign contains invalid characters: '{', '}'."},
	{"a port", `user@example.com:25`, "The part after the @-sign contains invalid characters: ':'."},
	{"an apostrophe and a backslash in the domain", `user@ex'am\ple.com`, `The part after the @-sign contains invalid characters: "'", "\".`},
	{"an address literal", `user@[127.0.0.1]`, "A bracketed IP address after the @-sign is not allowed here."},
	{"an address literal of IPv6", `user@[IPv6:::1]`, "A bracketed IP address after the @-sign is not allowed here."},
	{"an address literal not closed", `user@[127.0.0.1`, "The part after the @-sign contains invalid characters: '['."},
	{"an address literal not opened", `user@127.0.0.1]`, "The part after the @-sign contains invalid characters: ']'."},
	{"a bare address", `user@127.0.0.1`, "The part after the @-sign is not valid. It is not within a valid top-level domain."},
	{"digits beyond ASCII at the top", "user@example.\u0661\u0662", "The part after the @-sign is not valid. It is not within a valid top-level domain."},
	{"one label", `user@example`, "The part after the @-sign is not valid. It should have a period."},
	{"localhost", `user@localhost`, "The part after the @-sign is not valid. It should have a period."},
	{"one label of digits", `user@1`, "The part after the @-sign is not valid. It should have a period."},
	{"a domain that ends with a dot", `user@example.com.`, "An email address cannot end with a period."},
	{"a domain that begins with a dot", `user@.example.com`, "An email address cannot have a period immediately after the @-sign."},
	{"a domain with two dots", `user@example..com`, "An email address cannot have two periods in a row."},
	{"a domain that ends with a hyphen", `user@example.com-`, "An email address cannot end with a hyphen."},
	{"a domain that begins with a hyphen", `user@-example.com`, "An email address cannot have a hyphen immediately after the @-sign."},
	{"a label that begins with a hyphen", `user@example.-com`, "An email address cannot have a period and a hyphen next to each other."},
	{"a label that ends with a hyphen", `user@example-.com`, "An email address cannot have a period and a hyphen next to each other."},
	{"hyphens in third and fourth place", `user@ab--cd.com`, "An email address cannot have two letters followed by two dashes immediately after the @-sign or after a period, except Punycode."},
	{"hyphens in third and fourth place alone", `user@a.zz--z.com`, "An email address cannot have two letters followed by two dashes immediately after the @-sign or after a period, except Punycode."},
	{"three hyphens after one letter", `user@a---b.com`, "An email address cannot have two letters followed by two dashes immediately after the @-sign or after a period, except Punycode."},
	{"a label of 64", `user@` + strings.Repeat("e", 64) + `.com`, "After the @-sign, periods cannot be separated by so many characters (1 character too many)."},
	{"a label of 65", `user@` + strings.Repeat("e", 65) + `.com`, "After the @-sign, periods cannot be separated by so many characters (2 characters too many)."},
	{"a domain of 253", `u@` + strings.Repeat("e.", 125) + `com`, "The email address is too long (1 character too many)."},
	{"a domain of 254", `u@` + strings.Repeat("e.", 125) + `comm`, "The email address is too long after the @-sign (1 character too many)."},
	{"255 octets", `uu@` + strings.Repeat("e.", 125) + `de`, "The email address is too long (1 character too many)."},
	{"256 octets", `uuu@` + strings.Repeat("e.", 125) + `de`, "The email address is too long (2 characters too many)."},
	{"255 octets in lower case, of letters that grow", `uuu@` + strings.Repeat("\u023a", 63) + `.` + strings.Repeat("\u023a", 19) + `.com`, "The email address is too long (1 character too many)."},
	{"255 octets as given, of letters that shrink", `uuu@` + strings.Repeat("\u212a", 63) + `.` + strings.Repeat("\u212a", 19) + `.com`, "The email address is too long (1 character too many)."},
	{"2048 characters", strings.Repeat("u", 2048), "An email address must have an @-sign."},
	{"2049 characters", strings.Repeat("\n", 2049), "Length must not exceed 2048 characters"},
	{"arpa", `user@example.arpa`, "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
	{"invalid", `user@example.invalid`, "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
	{"local", `user@printer.local`, "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
	{"localhost at the top", `user@a.localhost`, "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
	{"onion", `user@example.onion`, "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
	{"test in upper case", `user@example.TEST`, "The part after the @-sign is a special-use or reserved name that cannot be used with email."},
}

// goodAddresses are kept with the domain in lower case and the local part as given.
var goodAddresses = []struct{ name, text, want string }{
	{"plain", `user@example.com`, `user@example.com`},
	{"letter case", `UsEr@ExAmPlE.CoM`, `UsEr@example.com`},
	{"all that an atom may have", "!#$%&'*+-/=?^_`{|}~09azAZ@example.com", "!#$%&'*+-/=?^_`{|}~09azAZ@example.com"},
	{"dots within", `a.b.c@example.com`, `a.b.c@example.com`},
	{"hyphens anywhere in the local part", `-a--b-@example.com`, `-a--b-@example.com`},
	{"the shortest", `a@b.c`, `a@b.c`},
	{"digits and hyphens in the domain", `user@9-a--9.0az.x-9`, `user@9-a--9.0az.x-9`},
	{"Punycode", `user@XN--mnchen-3ya.de`, `user@xn--mnchen-3ya.de`},
	{"a hyphen in third place alone", `user@ab-c.com`, `user@ab-c.com`},
	{"a hyphen in fourth place alone", `user@abc-d.com`, `user@abc-d.com`},
	{"letters beyond ASCII", `jörg@MÜNCHEN.de`, `jörg@münchen.de`},
	{"the dotted I of Turkish, whose lower case is another letter", "\u0130@G\u0130T.com", "\u0130@g\u0130t.com"},
	{"the Kelvin sign, a k in the domain", "\u212a@\u212aelvin.com", "\u212a@kelvin.com"},
	{"254 octets in lower case, of letters that grow", `uu@` + strings.Repeat("\u023a", 63) + `.` + strings.Repeat("\u023a", 19) + `.com`, `uu@` + strings.Repeat("\u2c65", 63) + `.` + strings.Repeat("\u2c65", 19) + `.com`},
	{"254 octets as given, of letters that shrink", `uu@` + strings.Repeat("\u212a", 63) + `.` + strings.Repeat("\u212a", 19) + `.com`, `uu@` + strings.Repeat("k", 63) + `.` + strings.Repeat("k", 19) + `.com`},
	{"other scripts", `用户@例子.公司`, `用户@例子.公司`},
	{"marks within", "e\u0301@e\u0301.com", "e\u0301@e\u0301.com"},
	{"digits beyond ASCII", "\u0661@\u0661.com", "\u0661@\u0661.com"},
	{"a local part of 64 octets", strings.Repeat("é", 32) + `@example.com`, strings.Repeat("é", 32) + `@example.com`},
	{"a label of 63", `user@` + strings.Repeat("e", 63) + `.com`, `user@` + strings.Repeat("e", 63) + `.com`},
	{"254 octets", `u@` + strings.Repeat("e.", 125) + `de`, `u@` + strings.Repeat("e.", 125) + `de`},
	{"a top level with a digit", `user@example.c0m`, `user@example.c0m`},
	{"a reserved name below the top", `user@test.local.com`, `user@test.local.com`},
	{"a name that ends like a reserved one", `user@example.mytest`, `user@example.mytest`},
	{"the documentation's own domain", `user@host.example`, `user@host.example`},
}

func TestParseAddress(t *testing.T) {
	for _, row := range badAddresses {
		if got, err := parseAddress(row.text); errText(err) != row.want || got != "" {
			t.Errorf("%s: got %q and %s, want %s", row.name, got, errText(err), row.want)
		}
	}
	for _, row := range goodAddresses {
		if got, err := parseAddress(row.text); got != row.want || err != nil {
			t.Errorf("%s: got %q and %v, want %q", row.name, got, err, row.want)
		}
	}
}

func TestAddressKey(t *testing.T) {
	for _, row := range []struct {
		name, a, b string
		same       bool
	}{
		{"letter case", "User@Example.COM", "uSER@eXAMPLE.com", true},
		{"the Kelvin sign", "mark@x.com", "mar\u212a@x.com", true},
		{"the long s", "Susan@x.com", "\u017fu\u017fan@x.com", true},
		{"both sigmas and the capital", "ΣΑΣ@x.gr", "σας@x.gr", true},
		{"the Angstrom sign", "å@x.se", "\u212b@x.se", true},
		{"the two sharp s", "ß@x.de", "ẞ@x.de", true},
		{"a dot", "a.b@x.com", "ab@x.com", false},
		{"a tag", "a+b@x.com", "a@x.com", false},
		{"another letter", "a@x.com", "b@x.com", false},
		{"an accent", "e@x.com", "é@x.com", false},
		{"sharp s and two s", "ß@x.de", "ss@x.de", false},
		{"a dotless i", "i@x.com", "ı@x.com", false},
		{"the dotted I of Turkish", "i@x.com", "\u0130@x.com", false},
		{"the dotted I of Turkish in the domain", "u@git.com", "u@g\u0130t.com", false},
		{"the dotted I and a dot on an i", "i\u0307@x.com", "\u0130@x.com", false},
		{"brackets that differ in one bit from braces", "[@x.com", "{@x.com", false},
	} {
		a, b := addressKey(row.a), addressKey(row.b)
		if got := a == b; got != row.same {
			t.Errorf("%s: got keys %q and %q, want them equal: %t", row.name, a, b, row.same)
		}
	}
	if got := addressKey("UsEr@Example.com"); got != "user@example.com" {
		t.Errorf("got %q, want lower case in what the log hashes", got)
	}
}

// TestFoldRune looks at every rune there is: two have one key if and only if they differ in letter case alone.
func TestFoldRune(t *testing.T) {
	for r := range unicode.MaxRune + 1 {
		got := foldRune(r)
		if next := foldRune(unicode.SimpleFold(r)); got != next {
			t.Errorf("%U: got key %U, and %U for its other case, want one", r, got, next)
		}
		if !strings.EqualFold(string(got), string(r)) {
			t.Errorf("%U: got key %U, want one that differs in letter case alone", r, got)
		}
	}
}

// TestLowerRune looks at every rune there is: the dotted I of Turkish alone is not what unicode.ToLower makes of it, and
// no address changes when it is read again.
func TestLowerRune(t *testing.T) {
	for r := range unicode.MaxRune + 1 {
		got, want := lowerRune(r), unicode.ToLower(r)
		if r == '\u0130' {
			want = r
		}
		if got != want || lowerRune(got) != got || foldRune(got) != foldRune(r) {
			t.Errorf("%U: got %U, want %U, with the same key", r, got, want)
		}
	}
}

// An argon2Vector is a hash string with what argon2-cffi, or the rules of the PHC string format, make of a password.
type argon2Vector struct {
	ID, Encoded, Password, Why string

	Padding  int    // how many characters A follow
	Expect   string // match, mismatch or refuse
	Reason   string // why we refuse it, if we do
	Outdated bool   // whether a good login makes the hash anew
}

// TestPublishedHashes computes each hash that is computed at all with its own parameters, most of which are today's.
func TestPublishedHashes(t *testing.T) {
	var file struct {
		About   string
		Vectors []argon2Vector
	}
	readTestdata(t, "argon2.json", &file)
	if len(file.Vectors) != 74 {
		t.Fatalf("got %d vectors, want 74", len(file.Vectors))
	}
	p := &passwords{params: argon2Params{memory: 65536, time: 3, threads: 4}}
	for _, v := range file.Vectors {
		t.Run(v.ID, func(t *testing.T) {
			t.Parallel()
			want := map[string]string{"match": "accepted", "mismatch": "wrong password", "refuse": v.Reason}[v.Expect]
			encoded := v.Encoded + strings.Repeat("A", v.Padding)
			if got := errText(p.verify(v.Password, encoded)); got != want || want == "" {
				t.Errorf("got %s, want %s (%s)", got, want, v.Why)
			}
			if got := p.outdated(encoded); v.Expect == "match" && got != v.Outdated {
				t.Errorf("outdated: got %t, want %t (%s)", got, v.Outdated, v.Why)
			}
		})
	}
}

// Salts and hashes of the least and the greatest lengths that are taken, and beyond.
var (
	salt7, salt8, salt16, salt64, salt65 = phcBytes(7), phcBytes(8), phcBytes(16), phcBytes(64), phcBytes(65)
	hash15, hash16, hash32, hash64       = phcBytes(15), phcBytes(16), phcBytes(32), phcBytes(64)
)

func phcBytes(n int) string {
	return base64.RawStdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, n))
}

// phcBounds go up to each bound of what a hash may ask for, and one beyond.
var phcBounds = []struct{ name, encoded, want string }{
	{"the least of all", "m=8,t=1,p=1$" + salt8 + "$" + hash16, "accepted"},
	{"the most of all", "m=262144,t=10,p=16$" + salt64 + "$" + hash64, "accepted"},
	{"memory of eight blocks a lane", "m=128,t=1,p=16$" + salt16 + "$" + hash32, "accepted"},
	{"a block too few", "m=127,t=1,p=16$" + salt16 + "$" + hash32, "password hash: m: want 128 to 262144"},
	{"too few blocks for one lane", "m=7,t=1,p=1$" + salt16 + "$" + hash32, "password hash: m: want 8 to 262144"},
	{"memory over the bound", "m=262145,t=1,p=1$" + salt16 + "$" + hash32, "password hash: m: want 8 to 262144"},
	{"no pass", "m=8,t=0,p=1$" + salt16 + "$" + hash32, "password hash: t: want 1 to 10"},
	{"a pass over the bound", "m=8,t=11,p=1$" + salt16 + "$" + hash32, "password hash: t: want 1 to 10"},
	{"no lane", "m=8,t=1,p=0$" + salt16 + "$" + hash32, "password hash: p: want 1 to 16"},
	{"a lane over the bound", "m=136,t=1,p=17$" + salt16 + "$" + hash32, "password hash: p: want 1 to 16"},
	{"lanes that are one, modulo 2 to the 32", "m=8,t=1,p=4294967297$" + salt16 + "$" + hash32, "password hash: p: want a decimal number"},
	{"a salt too short", "m=8,t=1,p=1$" + salt7 + "$" + hash32, "password hash: want a salt of 8 to 64 bytes"},
	{"a salt too long", "m=8,t=1,p=1$" + salt65 + "$" + hash32, "password hash: want a salt of 8 to 64 bytes"},
	{"a hash too short", "m=8,t=1,p=1$" + salt16 + "$" + hash15, "password hash: want a hash of 16 to 64 bytes"},
	{"a hash too long", "m=8,t=1,p=1$" + salt16 + "$" + salt65, "password hash: want a hash of 16 to 64 bytes"},
	{"a name left out", "m=8,t=1,1$" + salt16 + "$" + hash32, "password hash: p: want a decimal number"},
	{"a number left out", "m=8,t=,p=1$" + salt16 + "$" + hash32, "password hash: t: want a decimal number"},
	{"a name in upper case", "M=8,t=1,p=1$" + salt16 + "$" + hash32, "password hash: m: want a decimal number"},
	{"a zero first", "m=8,t=1,p=01$" + salt16 + "$" + hash32, "password hash: leading zero"},
	{"two parameters", "m=8,t=1$" + salt16 + "$" + hash32, "password hash: want m=65536,t=3,p=4 or the like"},
	{"four parameters", "m=8,t=1,p=1,x=1$" + salt16 + "$" + hash32, "password hash: want m=65536,t=3,p=4 or the like"},
	{"a line feed in the salt", "m=8,t=1,p=1$" + salt8 + "\n$" + hash32, "password hash: not in its one spelling"},
	{"stray bits in the salt", "m=8,t=1,p=1$AAECAwQFBgcICQoLDA0ODx$" + hash32, "password hash: not in its one spelling"},
	{"stray bits in the hash", "m=8,t=1,p=1$" + salt16 + "$" + hash16[:21] + "x", "password hash: not in its one spelling"},
	{"a fourth field", "m=8,t=1,p=1$" + salt16 + "$" + hash32 + "$", "password hash: not an argon2id hash of version 19"},
	{"513 bytes", "m=8,t=1,p=1$" + salt16 + "$" + strings.Repeat("A", 463), "password hash: not an argon2id hash of version 19"},
	{"512 bytes", "m=8,t=1,p=1$" + salt16 + "$" + strings.Repeat("A", 462), "password hash: want a hash of 16 to 64 bytes"},
}

// TestPHCBounds parses alone: what stands at the upper bounds would take a second to compute.
func TestPHCBounds(t *testing.T) {
	for _, row := range phcBounds {
		encoded := phcPrefix + row.encoded
		h, err := parsePHC(encoded)
		if got := errText(err); got != row.want {
			t.Errorf("%s (%d bytes): got %s, want %s", row.name, len(encoded), got, row.want)
		}
		if err == nil && h.String() != encoded {
			t.Errorf("%s: got %s, want it as it was", row.name, h)
		}
	}
	_, err := parsePHC("m=8,t=1,p=1$" + salt16 + "$" + hash32)
	if got, want := errText(err), "password hash: not an argon2id hash of version 19"; got != want {
		t.Errorf("no prefix: got %s, want %s", got, want)
	}
}

func TestHashAndVerify(t *testing.T) {
	p := newPasswords(argon2Params{memory: 32, time: 2, threads: 3})
	form := regexp.MustCompile(`^\$argon2id\$v=19\$m=32,t=2,p=3\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`)
	long := strings.Repeat("𝄞", 128)
	for _, password := range []string{"", "secret123", "secret123 ", "Secret123", "sécret123", "se\u0301cret123", "a\x00b", long, long[1:]} {
		first, second := p.hash(password).reveal(), p.hash(password).reveal()
		if !form.MatchString(first) || first == second {
			t.Errorf("password %q: got %s and %s, want two hashes with salts of their own", password, first, second)
		}
		for _, other := range []string{"", "secret123", "secret123 ", "Secret123", "sécret123", "se\u0301cret123", "a\x00b", "a", long, long[1:]} {
			want := "wrong password"
			if other == password {
				want = "accepted"
			}
			if got := errText(p.verify(other, first)); got != want {
				t.Errorf("password %q against the hash of %q: got %s, want %s", other, password, got, want)
			}
		}
		if p.outdated(first) {
			t.Errorf("got the hash %s outdated, want it of today", first)
		}
	}
}

func TestOutdated(t *testing.T) {
	p := newPasswords(argon2Params{memory: 32, time: 2, threads: 3})
	for _, row := range []struct {
		name, encoded string
		want          bool
	}{
		{"today's", "m=32,t=2,p=3$" + salt16 + "$" + hash32, false},
		{"the decoy", strings.TrimPrefix(p.decoy.reveal(), phcPrefix), false},
		{"more memory", "m=33,t=2,p=3$" + salt16 + "$" + hash32, true},
		{"less memory", "m=31,t=2,p=3$" + salt16 + "$" + hash32, true},
		{"another pass", "m=32,t=3,p=3$" + salt16 + "$" + hash32, true},
		{"a pass less", "m=32,t=1,p=3$" + salt16 + "$" + hash32, true},
		{"another lane", "m=32,t=2,p=4$" + salt16 + "$" + hash32, true},
		{"a shorter salt", "m=32,t=2,p=3$" + salt8 + "$" + hash32, true},
		{"a longer salt", "m=32,t=2,p=3$" + salt64 + "$" + hash32, true},
		{"a shorter hash", "m=32,t=2,p=3$" + salt16 + "$" + hash16, true},
		{"a longer hash", "m=32,t=2,p=3$" + salt16 + "$" + hash64, true},
		{"no hash at all", "", true},
	} {
		if got := p.outdated(phcPrefix + row.encoded); got != row.want {
			t.Errorf("%s: got %t, want %t", row.name, got, row.want)
		}
	}
	if other := newPasswords(p.params); other.decoy.reveal() == p.decoy.reveal() {
		t.Errorf("got the decoy %s twice, want each to be random", p.decoy.reveal())
	}
}

// TestHashesAtOnce changes how many cores the program sees, which no test beside it may see.
func TestHashesAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, row := range []struct{ cores, lanes, want int }{
		{1, 4, 1}, {2, 4, 1}, {4, 4, 1}, {7, 4, 1}, {8, 4, 2}, {8, 1, 8}, {8, 16, 1},
	} {
		runtime.GOMAXPROCS(row.cores)
		p := newPasswords(argon2Params{memory: 128, time: 1, threads: uint8(row.lanes)})
		if got, cores := cap(p.slots), runtime.GOMAXPROCS(0); got != row.want || cores != row.cores {
			t.Errorf("%d cores, %d lanes: got %d hashes at once, want %d, and the cores left", row.cores, row.lanes, got, row.want)
		}
	}
}

// fullPasswords has all its slots held, and as many who wait as are said. To give one slot back, receive from slots.
func fullPasswords(slots, waiting int) *passwords {
	p := newPasswords(cheap)
	p.slots = make(chan struct{}, slots)
	for range slots {
		p.slots <- struct{}{}
	}
	p.queued.Store(int64(waiting))
	return p
}

// TestAdmitBounds asks for a turn when all slots are held. Who waits is turned away by the context, which has ended.
func TestAdmitBounds(t *testing.T) {
	gone := errors.New("the client is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	for _, row := range []struct {
		name           string
		slots, waiting int
		want           error
	}{
		{"nobody waits", 1, 0, gone},
		{"there is room for one more", 1, 63, gone},
		{"the queue is full", 1, 64, errBusy},
		{"there is room for one more at two slots", 2, 127, gone},
		{"the queue is full at two slots", 2, 128, errBusy},
	} {
		p := fullPasswords(row.slots, row.waiting)
		release, err := p.admit(ctx)
		if err != row.want || release != nil {
			t.Errorf("%s: got %v, want %v and nothing to release", row.name, err, row.want)
		}
		if got := p.queued.Load(); got != int64(row.waiting) {
			t.Errorf("%s: got %d waiting afterwards, want %d", row.name, got, row.waiting)
		}
		if got := len(p.slots); got != row.slots {
			t.Errorf("%s: got %d slots held, want %d", row.name, got, row.slots)
		}
	}
}

// TestAdmitWait runs on a clock of its own, which goes on as soon as all are waiting.
func TestAdmitWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fullPasswords(1, 0)
		start := time.Now()
		if _, err := p.admit(t.Context()); err != errBusy || time.Since(start) != 5*time.Second {
			t.Errorf("got %v after %v, want %v after 5s", err, time.Since(start), errBusy)
		}
		served := make(chan func())
		go func() {
			release, err := p.admit(t.Context())
			if err != nil {
				t.Errorf("a slot is given back: got %v, want it taken", err)
			}
			served <- release
		}()
		synctest.Wait()
		if got := p.queued.Load(); got != 1 {
			t.Errorf("got %d waiting, want 1", got)
		}
		<-p.slots
		release := <-served
		if held, waiting := len(p.slots), p.queued.Load(); held != 1 || waiting != 0 {
			t.Errorf("got %d slots held and %d waiting, want 1 and 0", held, waiting)
		}
		release()
		if held := len(p.slots); held != 0 {
			t.Errorf("released: got %d slots held, want none", held)
		}
	})
}

func TestAdmitFree(t *testing.T) {
	p := newPasswords(cheap)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	release, err := p.admit(ended) // What takes no time needs no context.
	if err != nil || len(p.slots) != 1 {
		t.Fatalf("got %v and %d slots held, want one", err, len(p.slots))
	}
	release()
	if len(p.slots) != 0 || p.queued.Load() != 0 {
		t.Errorf("released: got %d slots held and %d waiting, want none", len(p.slots), p.queued.Load())
	}
}

// partsServer has an admin, a user, and a clock that stands at 1500 seconds.
func partsServer(t *testing.T) *server {
	t.Helper()
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret}, "")
	if err != nil {
		t.Fatal(err)
	}
	cfg.argon2 = cheap
	s, err := newServer(cfg, func() time.Time { return time.Unix(1500, 0) }, newLogger("text", io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	u := user{id: "u1", email: "User@example.com", name: "User", scopes: "me", hash: s.passwords.hash("secret123")}
	if err := s.users.add(u); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCheckPassword gives the decoy a password that somebody may guess: even who does is nobody.
func TestCheckPassword(t *testing.T) {
	s := partsServer(t)
	s.passwords.decoy = s.passwords.hash("decoy-password")
	broken := user{id: "u2", email: "broken@example.com", hash: newSecret("secret123")}
	if err := s.users.add(broken); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ name, address, password, want string }{
		{"right", "User@example.com", "secret123", "accepted"},
		{"the address in another letter case", "uSER@EXAMPLE.com", "secret123", "accepted"},
		{"the seeded admin", "admin@example.com", "admin-password", "accepted"},
		{"wrong password", "User@example.com", "secret124", "wrong password"},
		{"no password", "User@example.com", "", "wrong password"},
		{"the password in another letter case", "User@example.com", "Secret123", "wrong password"},
		{"another's password", "User@example.com", "admin-password", "wrong password"},
		{"the decoy's password for a user", "User@example.com", "decoy-password", "wrong password"},
		{"unknown address", "nobody@example.com", "secret123", "unknown address"},
		{"unknown address and the decoy's password", "nobody@example.com", "decoy-password", "unknown address"},
		{"no address", "", "decoy-password", "unknown address"},
		{"a stored hash that is none", "broken@example.com", "secret123", "password hash: not an argon2id hash of version 19"},
	} {
		u, err := s.checkPassword(t.Context(), loopback, row.address, row.password)
		if got := errText(err); got != row.want || (err == nil) != (u.id != "") {
			t.Errorf("%s: got user %q and %s, want %s", row.name, u.id, got, row.want)
		}
		if held := len(s.passwords.slots); held != 0 {
			t.Fatalf("%s: got %d slots held afterwards, want none", row.name, held)
		}
	}
}

// TestCheckPasswordCosts looks for what a hash takes, its memory, whoever asks: the time of an answer is not to tell
// whether an address is known. And whoever asks waits for a turn.
func TestCheckPasswordCosts(t *testing.T) {
	s := partsServer(t)
	s.passwords.params = argon2Params{memory: 4096, time: 1, threads: 1}
	s.passwords.decoy = newPasswords(s.passwords.params).decoy
	hash := s.passwords.hash("secret123")
	s.users.update("u1", func(u *user) { u.hash = hash })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range []struct{ name, address, password string }{
		{"right", "user@example.com", "secret123"},
		{"wrong password", "user@example.com", "secret124"},
		{"unknown address", "nobody@example.com", "secret123"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.checkPassword(t.Context(), loopback, row.address, row.password)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got < 4<<20 || got > 6<<20 {
			t.Errorf("%s: got %d bytes allocated, want the 4 MiB of one hash", row.name, got)
		}
		free := s.passwords.slots
		s.passwords.slots = fullPasswords(1, 0).slots
		if _, err := s.checkPassword(gone, loopback, row.address, row.password); err != context.Canceled {
			t.Errorf("%s, all slots held: got %v, want %v", row.name, err, context.Canceled)
		}
		s.passwords.slots = free
	}
}

// TestUpgradeAtLogin stores a hash of other parameters, which a good login, and no other, makes anew.
func TestUpgradeAtLogin(t *testing.T) {
	s := partsServer(t)
	old := newPasswords(argon2Params{memory: 16, time: 1, threads: 1}).hash("secret123").reveal()
	s.users.update("u1", func(u *user) { u.hash = newSecret(old) })
	stored := func() string {
		u, _ := s.users.withID("u1")
		return u.hash.reveal()
	}
	if _, err := s.checkPassword(t.Context(), loopback, "user@example.com", "secret124"); err != errMismatch || stored() != old {
		t.Errorf("wrong password: got %v and the hash %s, want %v and %s", err, stored(), errMismatch, old)
	}
	u, err := s.checkPassword(t.Context(), loopback, "user@example.com", "secret123")
	if err != nil || u.id != "u1" {
		t.Fatalf("got %q and %v, want u1", u.id, err)
	}
	made := stored()
	if !strings.HasPrefix(made, "$argon2id$v=19$m=8,t=1,p=1$") || s.passwords.verify("secret123", made) != nil {
		t.Errorf("got the hash %s, want one of today's parameters for the same password", made)
	}
	if _, err := s.checkPassword(t.Context(), loopback, "user@example.com", "secret123"); err != nil || stored() != made {
		t.Errorf("second login: got %v and the hash %s, want %s kept", err, stored(), made)
	}
}

func TestStoreOneAddressAtOnce(t *testing.T) {
	s := newUsers()
	spellings := []string{"user@example.com", "User@example.com", "USER@example.com", "u\u017fer@example.com"}
	won := make(chan string, 20)
	var wg sync.WaitGroup
	for i := range cap(won) {
		wg.Go(func() {
			u := user{id: fmt.Sprint(i), email: spellings[i%len(spellings)]}
			switch err := s.add(u); err {
			case nil:
				won <- u.id
			case errAddressTaken:
			default:
				t.Errorf("got %v, want %v", err, errAddressTaken)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || s.count() != 1 {
		t.Fatalf("got %d who won and %d users, want 1 and 1", len(won), s.count())
	}
	id := <-won
	for _, spelling := range spellings {
		if u, ok := s.withAddress(spelling); !ok || u.id != id {
			t.Errorf("%s: got %q, want %s, who won", spelling, u.id, id)
		}
	}
	for i := range cap(won) {
		if _, ok := s.withID(fmt.Sprint(i)); ok != (fmt.Sprint(i) == id) {
			t.Errorf("user %d: got %t, want only %s to be there", i, ok, id)
		}
	}
}

// fiveUsers are u0 to u4, in this order.
func fiveUsers(t *testing.T) *users {
	t.Helper()
	s := newUsers()
	for i := range 5 {
		u := user{id: fmt.Sprintf("u%d", i), email: fmt.Sprintf("U%d@example.com", i), name: "User", scopes: "me"}
		if err := s.add(u); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestStoreLookup(t *testing.T) {
	s := fiveUsers(t)
	if u, ok := s.withID("u3"); !ok || u != (user{id: "u3", email: "U3@example.com", name: "User", scopes: "me"}) {
		t.Errorf("u3: got %+v and %t, want the user as added", u, ok)
	}
	if u, ok := s.withAddress("u3@EXAMPLE.com"); !ok || u.id != "u3" || u.email != "U3@example.com" {
		t.Errorf("u3's address: got %+v and %t, want u3 with the address as given", u, ok)
	}
	for _, id := range []string{"", "u5", "U3", "u3@example.com"} {
		if u, ok := s.withID(id); ok || u != (user{}) {
			t.Errorf("id %q: got %+v, want nobody", id, u)
		}
		if i, ok := s.position(id); ok {
			t.Errorf("id %q: got position %d, want none", id, i)
		}
	}
	for _, address := range []string{"", "u3", "u5@example.com"} {
		if u, ok := s.withAddress(address); ok || u != (user{}) {
			t.Errorf("address %q: got %+v, want nobody", address, u)
		}
	}
	for want := range 5 {
		if got, ok := s.position(fmt.Sprintf("u%d", want)); !ok || got != want {
			t.Errorf("u%d: got position %d and %t, want %d", want, got, ok, want)
		}
	}
	if err := s.add(user{id: "u9", email: "u3@example.COM"}); err != errAddressTaken || s.count() != 5 {
		t.Errorf("u3's address again: got %v and %d users, want %v and 5", err, s.count(), errAddressTaken)
	}
}

// TestStoreCopies changes what went in and what came out, which changes nothing in between.
func TestStoreCopies(t *testing.T) {
	s := newUsers()
	u := user{id: "u1", email: "user@example.com", name: "User"}
	if err := s.add(u); err != nil {
		t.Fatal(err)
	}
	u.name = "changed"
	out, _ := s.withID("u1")
	out.name = "changed"
	out, _ = s.withAddress("user@example.com")
	out.name = "changed"
	page := make([]user, 1)
	s.page(page, 0)
	page[0].name = "changed"
	var kept *user
	s.update("u1", func(u *user) { kept = u })
	before, _ := s.withID("u1")
	s.update("u1", func(u *user) { u.scopes = "me" })
	if got, _ := s.withID("u1"); got.name != "User" || got.scopes != "me" || before.scopes != "" || kept.scopes != "" {
		t.Errorf("got %+v, want the name User, and earlier copies without a scope", got)
	}
}

func TestStoreUpdate(t *testing.T) {
	s := fiveUsers(t)
	err := s.update("u3", func(u *user) {
		*u = user{id: "u4", email: "other@example.com", name: "Other", scopes: "me admin", hash: newSecret("h")}
	})
	u, _ := s.withID("u3")
	if err != nil || u.id != "u3" || u.email != "U3@example.com" || u.name != "Other" || u.scopes != "me admin" || u.hash.reveal() != "h" {
		t.Errorf("got %+v and %v, want all changed but id and address", u, err)
	}
	if u, ok := s.withAddress("other@example.com"); ok {
		t.Errorf("the other address: got %+v, want nobody", u)
	}
	for _, id := range []string{"u2", "u4"} {
		if u, _ := s.withID(id); u.name != "User" {
			t.Errorf("%s: got name %s, want User", id, u.name)
		}
	}
	called := false
	if err := s.update("u5", func(*user) { called = true }); err != errUnknownUser || called || s.count() != 5 {
		t.Errorf("u5: got %v and called: %t, want %v and not", err, called, errUnknownUser)
	}
}

func TestStorePage(t *testing.T) {
	s := fiveUsers(t)
	for _, row := range []struct {
		name       string
		size, from int
		want       string
	}{
		{"the first", 2, 0, "u0 u1"},
		{"the second", 2, 2, "u2 u3"},
		{"the last, not full", 2, 4, "u4"},
		{"past the end", 2, 5, ""},
		{"far past the end", 2, 50, ""},
		{"all, exactly", 5, 0, "u0 u1 u2 u3 u4"},
		{"all, and room for more", 9, 0, "u0 u1 u2 u3 u4"},
		{"no room", 0, 0, ""},
	} {
		page := make([]user, row.size)
		n := s.page(page, row.from)
		var ids []string
		for _, u := range page[:n] {
			ids = append(ids, u.id)
		}
		if got := strings.Join(ids, " "); got != row.want {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
	if n := newUsers().page(make([]user, 2), 0); n != 0 {
		t.Errorf("no users: got %d, want none", n)
	}
}

// TestStoreConcurrently is for the race detector: every call beside every other.
func TestStoreConcurrently(t *testing.T) {
	s := fiveUsers(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			page := make([]user, 3)
			for j := range 50 {
				id := fmt.Sprintf("w%d-%d", i, j)
				s.add(user{id: id, email: id + "@example.com", name: "0"})
				s.update("u1", func(u *user) { u.name += "x" })
				s.withID("u1")
				s.withAddress("u1@example.com")
				s.position(id)
				s.page(page, s.count()-3)
			}
		})
	}
	wg.Wait()
	if u, _ := s.withID("u1"); s.count() != 405 || len(u.name) != len("User")+400 {
		t.Errorf("got %d users and %d updates, want 405 and 400", s.count(), len(u.name)-len("User"))
	}
}

func TestScopes(t *testing.T) {
	for _, row := range []struct {
		scopes scopes
		scope  string
		want   bool
	}{
		{"me admin", "admin", true},
		{"admin", "admin", true},
		{" me  admin ", "me", true},
		{"me", "admin", false},
		{"", "admin", false},
		{"me administrator", "admin", false},
		{"me xadmin", "admin", false},
		{"me Admin", "admin", false},
		{"me admin", "me admin", false},
		{"me admin", "", false},
	} {
		if got := row.scopes.has(row.scope); got != row.want {
			t.Errorf("%q has %q: got %t, want %t", row.scopes, row.scope, got, row.want)
		}
	}
}

// A bearerRow is a request's Authorization headers and their answer: 0 lets it through.
type bearerRow struct {
	name    string
	headers []string
	scope   string
	status  int
	detail  string
	want    string // the user's id, or the challenge
}

// bearerRows needs tokens: the user u1 has the scope me, the admin both. u1's tokens with the scope admin are from a
// time when u1 had it; the admin's token without is one that was asked for with less.
func bearerRows(s *server) []bearerRow {
	access := func(id string, scopes scopes) string {
		return "Bearer " + s.tokens.issuePair(user{id: id, scopes: scopes}).AccessToken
	}
	mine, admins := access("u1", "me"), access("admin-0", "me admin")
	refresh := "Bearer " + s.tokens.issuePair(user{id: "u1", scopes: "me"}).RefreshToken
	const (
		none, bad, missing = "Not authenticated", "Could not validate credentials", "Missing required scope: admin"
		invalid            = `Bearer error="invalid_token"`
		invalidAdmin       = `Bearer scope="admin", error="invalid_token"`
		insufficient       = `Bearer scope="admin", error="insufficient_scope"`
	)
	return []bearerRow{
		{"an access token", []string{mine}, "", 0, "", "u1"},
		{"an access token with the scope", []string{admins}, "admin", 0, "", "admin-0"},
		{"an access token without any scope, where none is asked for", []string{access("u1", "")}, "", 0, "", "u1"},
		{"the scheme in lower case", []string{"b" + mine[1:]}, "", 0, "", "u1"},
		{"the scheme in upper case", []string{"BEARER" + mine[6:]}, "", 0, "", "u1"},
		{"several spaces after the scheme", []string{"Bearer  " + mine[6:]}, "", 0, "", "u1"},
		{"no header", nil, "", 401, none, "Bearer"},
		{"no header where a scope is asked for", nil, "admin", 401, none, "Bearer"},
		{"an empty header", []string{""}, "", 401, none, "Bearer"},
		{"another scheme", []string{"Basic dTpw"}, "", 401, none, "Bearer"},
		{"another scheme with a good token", []string{"Token " + mine[7:]}, "", 401, none, "Bearer"},
		{"the scheme with a colon", []string{"Bearer: " + mine[7:]}, "", 401, none, "Bearer"},
		{"a scheme that begins with ours", []string{"BearerX " + mine[7:]}, "", 401, none, "Bearer"},
		{"a tab after the scheme", []string{"Bearer\t" + mine[7:]}, "", 401, none, "Bearer"},
		{"a token without a scheme", []string{mine[7:]}, "", 401, none, "Bearer"},
		{"the scheme alone", []string{"Bearer"}, "", 401, bad, invalid},
		{"the scheme and a space", []string{"Bearer "}, "", 401, bad, invalid},
		{"no token", []string{"Bearer x"}, "", 401, bad, invalid},
		{"no token where a scope is asked for", []string{"Bearer x"}, "admin", 401, bad, invalidAdmin},
		{"a space after the token", []string{mine + " "}, "", 401, bad, invalid},
		{"a tilde before the token", []string{"Bearer ~" + mine[7:]}, "", 401, bad, invalid},
		{"two tokens in one header", []string{mine + ", " + mine}, "", 401, bad, invalid},
		{"two headers, both good", []string{mine, mine}, "", 401, bad, invalid},
		{"two headers, the second of another scheme", []string{mine, "Basic dTpw"}, "", 401, bad, invalid},
		{"two headers, the first of another scheme", []string{"Basic dTpw", mine}, "", 401, none, "Bearer"},
		{"a refresh token", []string{refresh}, "", 401, bad, invalid},
		{"a refresh token where a scope is asked for", []string{refresh}, "admin", 401, bad, invalidAdmin},
		{"a user who is gone", []string{access("u9", "me admin")}, "", 401, bad, invalid},
		{"a user who is gone where a scope is asked for", []string{access("u9", "me admin")}, "admin", 401, bad, invalidAdmin},
		{"neither the token nor the user has the scope", []string{mine}, "admin", 403, missing, insufficient},
		{"the user has lost the scope", []string{access("u1", "me admin")}, "admin", 403, missing, insufficient},
		{"the token was made without the scope", []string{access("admin-0", "me")}, "admin", 403, missing, insufficient},
		{"the token has a scope that only begins so", []string{access("admin-0", "administrator")}, "admin", 403, missing, insufficient},
	}
}

func TestCheckBearer(t *testing.T) {
	s := partsServer(t)
	for _, row := range bearerRows(s) {
		h := http.Header{}
		for _, value := range row.headers {
			h.Add("Authorization", value)
		}
		u, err := s.checkBearer(h, row.scope)
		var answer httpError
		if e, ok := err.(*httpError); ok {
			answer = *e
		}
		got := bearerRow{row.name, row.headers, row.scope, answer.status, "", u.id + answer.authenticate}
		got.detail, _ = answer.detail.(string)
		if fmt.Sprint(got) != fmt.Sprint(row) || (err == nil) != (row.status == 0) {
			t.Errorf("%s: got %d, %s, %s, want %d, %s, %s", row.name, got.status, got.detail, got.want, row.status, row.detail, row.want)
		}
	}
}

// TestScopeLost takes the scope from a user whose token still has it, and gives it back.
func TestScopeLost(t *testing.T) {
	s := partsServer(t)
	admin, _ := s.users.withID("admin-0")
	h := http.Header{"Authorization": {"Bearer " + s.tokens.issuePair(admin).AccessToken}}
	for _, row := range []struct {
		scopes scopes
		want   string
	}{
		{"me admin", "accepted"},
		{"me", "403: Missing required scope: admin"},
		{"admin", "accepted"},
		{"", "403: Missing required scope: admin"},
	} {
		s.users.update("admin-0", func(u *user) { u.scopes = row.scopes })
		_, err := s.checkBearer(h, "admin")
		if got := errText(err); got != row.want {
			t.Errorf("scopes %q: got %s, want %s", row.scopes, got, row.want)
		}
	}
}

// TestWrappers looks at what gets to a handler, and at what the log gets to know that the client does not.
func TestWrappers(t *testing.T) {
	s := partsServer(t)
	got := ""
	next := func(_ http.ResponseWriter, r *http.Request) error {
		got = currentUser(r.Context()).id
		return errBusy
	}
	token := s.tokens.issuePair(user{id: "u1", scopes: "me"}).AccessToken
	for _, row := range []struct {
		name, token string
		handler     handlerFunc
		user, event string
		want        error
	}{
		{"good", token, s.requireUser(next), "u1", "", errBusy},
		{"with the scope", token, s.requireScope("me", next), "u1", "", errBusy},
		{"without the scope", token, s.requireScope("admin", next), "", "scope refused[user=u1]", nil},
		{"altered", token + "A", s.requireUser(next), "", "token refused[]", errSignature},
		{"of nobody", s.tokens.issuePair(user{id: "u9"}).AccessToken, s.requireUser(next), "", "token refused[]", errUnknownUser},
	} {
		got = ""
		r := httptest.NewRequest("GET", "/me", nil)
		r.Header.Set("Authorization", "Bearer "+row.token)
		err := row.handler(httptest.NewRecorder(), r)
		event := ""
		if e, ok := err.(*httpError); ok {
			event, err = fmt.Sprint(e.event, e.attrs), e.cause
		}
		if got != row.user || event != row.event || row.want != nil && err != row.want {
			t.Errorf("%s: got user %q, %s, %v, want %q, %s, %v", row.name, got, event, err, row.user, row.event, row.want)
		}
	}
	if errBadToken.authenticate != "" || errForbidden.detail != nil {
		t.Errorf("got %q and %v left behind, want each answer to be its own", errBadToken.authenticate, errForbidden.detail)
	}
}

// badSettings are set in the environment beside a good secret, one thing wrong in each.
var badSettings = []struct{ name, environ, want string }{
	{"no secret", "APP_JWT_SECRET=", "APP_JWT_SECRET: missing; make one with: openssl rand -hex 32"},
	{"a secret of a byte", "APP_JWT_SECRET=x", "APP_JWT_SECRET: want at least 32 bytes, got 1; make one with: openssl rand -hex 32"},
	{"a secret of 31 bytes", "APP_JWT_SECRET=0123456789abcdef0123456789abcde", "APP_JWT_SECRET: want at least 32 bytes, got 31; make one with: openssl rand -hex 32"},
	{"another algorithm", "APP_JWT_ALGORITHM=HS512", "APP_JWT_ALGORITHM: only HS256 is supported"},
	{"no algorithm", "APP_JWT_ALGORITHM=", "APP_JWT_ALGORITHM: only HS256 is supported"},
	{"the algorithm in lower case", "APP_JWT_ALGORITHM=hs256", "APP_JWT_ALGORITHM: only HS256 is supported"},
	{"the algorithm none", "APP_JWT_ALGORITHM=none", "APP_JWT_ALGORITHM: only HS256 is supported"},
	{"no issuer", "APP_ISSUER=", "APP_ISSUER: want a text in UTF-8 that is not empty"},
	{"an issuer that is not UTF-8", "APP_ISSUER=\xff", "APP_ISSUER: want a text in UTF-8 that is not empty"},
	{"no access TTL", "APP_ACCESS_TTL_MINUTES=", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL of zero", "APP_ACCESS_TTL_MINUTES=0", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"a negative access TTL", "APP_ACCESS_TTL_MINUTES=-15", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL with a unit", "APP_ACCESS_TTL_MINUTES=15m", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL with a fraction", "APP_ACCESS_TTL_MINUTES=1.5", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL with a sign", "APP_ACCESS_TTL_MINUTES=+15", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL with a zero first", "APP_ACCESS_TTL_MINUTES=015", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL with a space", "APP_ACCESS_TTL_MINUTES= 15", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL in digits beyond ASCII", "APP_ACCESS_TTL_MINUTES=\u0661\u0665", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"an access TTL over a year", "APP_ACCESS_TTL_MINUTES=525601", "APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600"},
	{"a refresh TTL of zero", "APP_REFRESH_TTL_DAYS=0", "APP_REFRESH_TTL_DAYS: want a whole number from 1 to 3650"},
	{"a refresh TTL over ten years", "APP_REFRESH_TTL_DAYS=3651", "APP_REFRESH_TTL_DAYS: want a whole number from 1 to 3650"},
	{"a refresh TTL beyond 64 bits", "APP_REFRESH_TTL_DAYS=18446744073709551623", "APP_REFRESH_TTL_DAYS: want a whole number from 1 to 3650"},
	{"no address", "APP_ADDR=", "APP_ADDR: want host:port"},
	{"a host alone", "APP_ADDR=127.0.0.1", "APP_ADDR: want host:port"},
	{"a port alone", "APP_ADDR=8000", "APP_ADDR: want host:port"},
	{"IPv6 without brackets", "APP_ADDR=::1:8000", "APP_ADDR: want host:port"},
	{"no port", "APP_ADDR=127.0.0.1:", "APP_ADDR: want a port from 0 to 65535"},
	{"a port with a name", "APP_ADDR=127.0.0.1:http", "APP_ADDR: want a port from 0 to 65535"},
	{"a port over 16 bits", "APP_ADDR=127.0.0.1:65536", "APP_ADDR: want a port from 0 to 65535"},
	{"a negative port", "APP_ADDR=127.0.0.1:-1", "APP_ADDR: want a port from 0 to 65535"},
	{"a port with a zero first", "APP_ADDR=127.0.0.1:08000", "APP_ADDR: want a port from 0 to 65535"},
	{"a port with a sign", "APP_ADDR=127.0.0.1:+8000", "APP_ADDR: want a port from 0 to 65535"},
	{"an admin without @", "APP_ADMIN_EMAIL=admin", "APP_ADMIN_EMAIL: An email address must have an @-sign."},
	{"an admin with a name", "APP_ADMIN_EMAIL=Admin <admin@example.com>", "APP_ADMIN_EMAIL: A display name and angle brackets around the email address are not permitted here."},
	{"no admin password", "APP_ADMIN_PASSWORD=", "APP_ADMIN_PASSWORD: want 8 to 128 characters, got 0"},
	{"an admin password of seven", "APP_ADMIN_PASSWORD=pässwör", "APP_ADMIN_PASSWORD: want 8 to 128 characters, got 7"},
	{"an admin password of 129", "APP_ADMIN_PASSWORD=" + strings.Repeat("ä", 129), "APP_ADMIN_PASSWORD: want 8 to 128 characters, got 129"},
	{"an admin password that is not UTF-8", "APP_ADMIN_PASSWORD=password\xff", "APP_ADMIN_PASSWORD: want a text in UTF-8"},
	{"a previous secret of five bytes", "APP_JWT_PREVIOUS_SECRETS=short", "APP_JWT_PREVIOUS_SECRETS: secret 1: want at least 32 bytes, got 5; make one with: openssl rand -hex 32"},
	{"a second previous secret of 31 bytes", "APP_JWT_PREVIOUS_SECRETS=" + strings.Repeat("o", 32) + "," + strings.Repeat("p", 31), "APP_JWT_PREVIOUS_SECRETS: secret 2: want at least 32 bytes, got 31; make one with: openssl rand -hex 32"},
	{"a comma after the last previous secret", "APP_JWT_PREVIOUS_SECRETS=" + strings.Repeat("o", 32) + ",", "APP_JWT_PREVIOUS_SECRETS: secret 2: want at least 32 bytes, got 0; make one with: openssl rand -hex 32"},
	{"a comma alone for previous secrets", "APP_JWT_PREVIOUS_SECRETS=,", "APP_JWT_PREVIOUS_SECRETS: secret 1: want at least 32 bytes, got 0; make one with: openssl rand -hex 32"},
	{"a secret from a file that is not there, beside one as it is", "APP_JWT_SECRET_FILE=/nope", "APP_JWT_SECRET_FILE: APP_JWT_SECRET is set as well"},
	{"a secret from a file beside one as it is", "APP_JWT_SECRET_FILE=testdata/tokens.json", "APP_JWT_SECRET_FILE: APP_JWT_SECRET is set as well"},
	{"a file that is not there", "APP_ADMIN_PASSWORD_FILE=testdata/nothing", "APP_ADMIN_PASSWORD_FILE: can't read the file: no such file or directory"},
	{"a directory for a file", "APP_ADMIN_PASSWORD_FILE=/", "APP_ADMIN_PASSWORD_FILE: can't read the file: is a directory"},
	{"a password for a file's name, which is not shown", "APP_ADMIN_PASSWORD_FILE=" + strings.Repeat("hunter2", 1000), "APP_ADMIN_PASSWORD_FILE: can't read the file: file name too long"},
	{"a file's name with a NUL", "APP_ADMIN_PASSWORD_FILE=hunter2\x00", "APP_ADMIN_PASSWORD_FILE: can't read the file: invalid argument"},
	{"an empty file", "APP_ADMIN_PASSWORD_FILE=/dev/null", "APP_ADMIN_PASSWORD: want 8 to 128 characters, got 0"},
	{"argon2 with no lane", "APP_ARGON2=m=65536,t=3,p=0", "APP_ARGON2: p: want 1 to 16, and at least m=19456,t=2,p=1"},
	{"argon2 in another order", "APP_ARGON2=t=3,m=65536,p=4", "APP_ARGON2: m: want a decimal number, and at least m=19456,t=2,p=1"},
	{"argon2 with spaces", "APP_ARGON2=m=65536, t=3, p=4", "APP_ARGON2: t: want a decimal number, and at least m=19456,t=2,p=1"},
	{"argon2 with a unit", "APP_ARGON2=m=64M,t=3,p=4", "APP_ARGON2: m: want a decimal number, and at least m=19456,t=2,p=1"},
	{"argon2 with a zero first", "APP_ARGON2=m=065536,t=3,p=4", "APP_ARGON2: leading zero, and at least m=19456,t=2,p=1"},
	{"no argon2", "APP_ARGON2=", "APP_ARGON2: want m=65536,t=3,p=4 or the like, and at least m=19456,t=2,p=1"},
	{"argon2 without lanes", "APP_ARGON2=m=65536,t=3", "APP_ARGON2: want m=65536,t=3,p=4 or the like, and at least m=19456,t=2,p=1"},
	{"argon2 with too little memory", "APP_ARGON2=m=19455,t=2,p=1", "APP_ARGON2: want at least m=19456,t=2,p=1"},
	{"argon2 with one pass", "APP_ARGON2=m=65536,t=1,p=4", "APP_ARGON2: want at least m=19456,t=2,p=1"},
	{"argon2 beyond what is computed at all", "APP_ARGON2=m=262145,t=3,p=4", "APP_ARGON2: m: want 32 to 262144, and at least m=19456,t=2,p=1"},
	{"a throttle that is neither on nor off", "APP_THROTTLE=10", "APP_THROTTLE: want on or off"},
	{"no throttle setting", "APP_THROTTLE=", "APP_THROTTLE: want on or off"},
	{"a proxy with a port", "APP_TRUSTED_PROXIES=10.0.0.1:80", `APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them`},
	{"a network of IPv6's spelling of IPv4, which no client has", "APP_TRUSTED_PROXIES=::ffff:10.0.0.0/104", `APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them`},
	{"loopback in IPv6's spelling of IPv4", "APP_TRUSTED_PROXIES=::1,::ffff:127.0.0.0/104", `APP_TRUSTED_PROXIES: network 2: want networks as 10.0.0.0/8, with commas between them`},
	{"an address in IPv6's spelling of IPv4", "APP_TRUSTED_PROXIES=::ffff:10.0.0.1", `APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them`},
	{"proxies with a space between them", "APP_TRUSTED_PROXIES=10.0.0.1 10.0.0.2", `APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them`},
	{"a proxy with a zone, which no address of a client has", "APP_TRUSTED_PROXIES=fe80::1%eth0", "APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them"},
	{"a proxy by name", "APP_TRUSTED_PROXIES=proxy", `APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them`},
	{"a net of 33 bits", "APP_TRUSTED_PROXIES=10.0.0.1, 10.0.0.0/33", `APP_TRUSTED_PROXIES: network 2: want networks as 10.0.0.0/8, with commas between them`},
	{"a comma after the last proxy", "APP_TRUSTED_PROXIES=10.0.0.1,", `APP_TRUSTED_PROXIES: network 2: want networks as 10.0.0.0/8, with commas between them`},
	{"a log in upper case", "APP_LOG=JSON", "APP_LOG: want text or json"},
	{"a log of another form", "APP_LOG=xml", "APP_LOG: want text or json"},
	{"no form of log", "APP_LOG=", "APP_LOG: want text or json"},
	{"docs that are neither on nor off", "APP_DOCS=yes", "APP_DOCS: want on or off"},
	{"no docs setting", "APP_DOCS=", "APP_DOCS: want on or off"},
	{"docs in upper case", "APP_DOCS=ON", "APP_DOCS: want on or off"},
	{"the documented password for all to reach", "APP_ADDR=0.0.0.0:8000", "APP_ADMIN_PASSWORD: the documented one is for loopback alone; set another to listen on 0.0.0.0:8000"},
	{"the documented password on every address", "APP_ADDR=:8000", "APP_ADMIN_PASSWORD: the documented one is for loopback alone; set another to listen on :8000"},
	{"the documented password on every address of IPv6", "APP_ADDR=[::]:8000", "APP_ADMIN_PASSWORD: the documented one is for loopback alone; set another to listen on [::]:8000"},
	{"the documented password in a private net", "APP_ADDR=10.0.0.1:80", "APP_ADMIN_PASSWORD: the documented one is for loopback alone; set another to listen on 10.0.0.1:80"},
	{"the documented password on a host's name", "APP_ADDR=127.0.0.1.example.com:80", "APP_ADMIN_PASSWORD: the documented one is for loopback alone; set another to listen on 127.0.0.1.example.com:80"},
}

func TestSettingsRefused(t *testing.T) {
	for _, row := range badSettings {
		_, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, row.environ}, "")
		if got := errText(err); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

// badDotenvs are files .env beside a good secret in the environment.
var badDotenvs = []struct{ name, text, want string }{
	{"a slip of the pen", "APP_ISUER=x", `.env line 1: APP_ISUER is not a setting; did you mean APP_ISSUER?`},
	{"a letter too many", "APP_ADDRR=x", `.env line 1: APP_ADDRR is not a setting; did you mean APP_ADDR?`},
	{"another digit", "APP_ARGON3=x", `.env line 1: APP_ARGON3 is not a setting; did you mean APP_ARGON2?`},
	{"another letter", "APP_ADMIN_EMAIK=x", `.env line 1: APP_ADMIN_EMAIK is not a setting; did you mean APP_ADMIN_EMAIL?`},
	{"another unit", "APP_REFRESH_TTL_HOURS=1", `.env line 1: APP_REFRESH_TTL_HOURS is not a setting; did you mean APP_REFRESH_TTL_DAYS?`},
	{"no prefix", "ADMIN_PASSWORD=x", `.env line 1: ADMIN_PASSWORD is not a setting; did you mean APP_ADMIN_PASSWORD?`},
	{"lower case", "app_addr=:80", `.env line 1: app_addr is not a setting; did you mean APP_ADDR?`},
	{"no name", "# a comment\n\n=x", `.env line 3: not the name of a setting`},
	{"a secret for a name, which is not shown", "aHVudGVyMi1odW50ZXIy=", `.env line 1: not the name of a setting`},
	{"six slips of the pen", "APP_ISSUERxxxxxx=x", `.env line 1: not the name of a setting`},
	{"five slips of the pen", "APP_ISSUERxxxxx=x", `.env line 1: APP_ISSUERxxxxx is not a setting; did you mean APP_ISSUER?`},
	{"no equals sign", "APP_ISSUER x", `.env line 1: want NAME=value`},
	{"a name alone", "\nAPP_ADMIN_EMAIL\n", `.env line 2: want NAME=value`},
	{"a name given twice", "APP_ISSUER=x\nAPP_ISSUER=x", `.env line 2: APP_ISSUER is set twice`},
	{"a colon", "APP_ISSUER: x=y", `.env line 1: not the name of a setting`},
	{"a quote alone", `APP_ISSUER="`, `.env line 1: APP_ISSUER: want the value in one pair of quotes, or in none`},
	{"a quote that does not end", `APP_ISSUER="x`, `.env line 1: APP_ISSUER: want the value in one pair of quotes, or in none`},
	{"quotes of two kinds", `APP_ISSUER="x'`, `.env line 1: APP_ISSUER: want the value in one pair of quotes, or in none`},
	{"something behind the quotes", `APP_ISSUER="x"y`, `.env line 1: APP_ISSUER: want the value in one pair of quotes, or in none`},
	{"an escape sequence in a name", "APP_\x1b[31mISSUER=x", `.env line 1: not the name of a setting`},
	{"a letter beyond ASCII in a name", "APP_İSSUER=x", `.env line 1: not the name of a setting`},
	{"something behind the quotes, then a comment", `APP_ISSUER="x" y # z`, `.env line 1: APP_ISSUER: want the value in one pair of quotes, or in none`},
	{"a mark of the byte order on a later line", "\n\uFEFFAPP_ISSUER=x", `.env line 2: not the name of a setting`},
	{"two marks of the byte order", "\uFEFF\uFEFFAPP_ISSUER=x", `.env line 1: not the name of a setting`},
	{"a value that does not parse", "APP_ACCESS_TTL_MINUTES=soon", `APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600`},
}

func TestDotenvRefused(t *testing.T) {
	for _, row := range badDotenvs {
		_, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret}, row.text)
		if got := errText(err); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

// TestSettingsAllFaults makes every mistake at once. That the password is the documented one is told when all else is
// right, since only then is it known where the service listens.
func TestSettingsAllFaults(t *testing.T) {
	environ := []string{
		"APP_JWT_SECRET=" + partsSecret[:31], "APP_JWT_ALGORITHM=none", "APP_ISSUER=", "APP_ACCESS_TTL_MINUTES=x",
		"APP_REFRESH_TTL_DAYS=x", "APP_ADDR=0.0.0.0", "APP_ADMIN_EMAIL=x", "APP_ADMIN_PASSWORD=hunter2", "APP_DOCS=x",
		"APP_JWT_PREVIOUS_SECRETS=hunter5", "APP_ADMIN_PASSWORD_FILE=testdata/nothing", "APP_ARGON2=x", "APP_THROTTLE=x",
		"APP_TRUSTED_PROXIES=x", "APP_LOG=x",
	}
	_, err := loadSettings(environ, "APP_NAME=hunter3\nhunter4\n")
	want := `.env line 1: APP_NAME is not a setting; did you mean APP_ADDR?
.env line 2: want NAME=value
APP_JWT_SECRET: want at least 32 bytes, got 31; make one with: openssl rand -hex 32
APP_JWT_PREVIOUS_SECRETS: secret 1: want at least 32 bytes, got 7; make one with: openssl rand -hex 32
APP_JWT_ALGORITHM: only HS256 is supported
APP_ISSUER: want a text in UTF-8 that is not empty
APP_ACCESS_TTL_MINUTES: want a whole number from 1 to 525600
APP_REFRESH_TTL_DAYS: want a whole number from 1 to 3650
APP_ADDR: want host:port
APP_ADMIN_EMAIL: An email address must have an @-sign.
APP_ADMIN_PASSWORD_FILE: APP_ADMIN_PASSWORD is set as well
APP_ARGON2: want m=65536,t=3,p=4 or the like, and at least m=19456,t=2,p=1
APP_THROTTLE: want on or off
APP_TRUSTED_PROXIES: network 1: want networks as 10.0.0.0/8, with commas between them
APP_DOCS: want on or off
APP_LOG: want text or json`
	if got := errText(err); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestEditDistance(t *testing.T) {
	for _, row := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"xxab", "ab", 2}, {"abxx", "ab", 2},
		{"ab", "xxab", 2}, {"ab", "ba", 2}, {"kitten", "sitting", 3}, {"sunday", "saturday", 3}, {"saturday", "sunday", 3},
	} {
		if got := editDistance(row.a, row.b); got != row.want {
			t.Errorf("%q and %q: got %d, want %d", row.a, row.b, got, row.want)
		}
	}
}

// settingsText shows settings in full, so that a row can say what is expected of all.
func settingsText(cfg settings) string {
	return fmt.Sprint(cfg.jwtSecret.reveal(), " ", cfg.issuer, " ", cfg.accessTTL, " ", cfg.refreshTTL, " ", cfg.addr, " ",
		cfg.adminEmail, " ", cfg.adminPassword.reveal(), " ", cfg.argon2, " throttle=", cfg.throttle, " proxies=", cfg.trustedProxies, " docs=", cfg.docs, " ", cfg.logFormat, " unknown=", cfg.unknown)
}

// goodSettings change one thing of the defaults, in the environment or in .env.
var goodSettings = []struct{ name, environ, dotenv, old, new string }{
	{"the defaults", "", "", "jwt-auth-api", "jwt-auth-api"},
	{"an issuer", "APP_ISSUER=https://auth.example.com/", "", "jwt-auth-api", "https://auth.example.com/"},
	{"a value with equals signs", "APP_ISSUER=a=b=", "", "jwt-auth-api", "a=b="},
	{"the shortest access TTL", "APP_ACCESS_TTL_MINUTES=1", "", "15m0s", "1m0s"},
	{"the longest access TTL", "APP_ACCESS_TTL_MINUTES=525600", "", "15m0s", "8760h0m0s"},
	{"the shortest refresh TTL", "APP_REFRESH_TTL_DAYS=1", "", "168h0m0s", "24h0m0s"},
	{"the longest refresh TTL", "APP_REFRESH_TTL_DAYS=3650", "", "168h0m0s", "87600h0m0s"},
	{"the algorithm", "APP_JWT_ALGORITHM=HS256", "", "jwt-auth-api", "jwt-auth-api"},
	{"any port", "APP_ADDR=127.0.0.1:0", "", "127.0.0.1:8000", "127.0.0.1:0"},
	{"the last port", "APP_ADDR=127.0.0.1:65535", "", "127.0.0.1:8000", "127.0.0.1:65535"},
	{"loopback by name", "APP_ADDR=localhost:80", "", "127.0.0.1:8000", "localhost:80"},
	{"another address of loopback", "APP_ADDR=127.9.9.9:80", "", "127.0.0.1:8000", "127.9.9.9:80"},
	{"loopback of IPv6", "APP_ADDR=[::1]:80", "", "127.0.0.1:8000", "[::1]:80"},
	{"loopback of IPv4 in IPv6", "APP_ADDR=[::ffff:127.0.0.1]:80", "", "127.0.0.1:8000", "[::ffff:127.0.0.1]:80"},
	{"an admin's address", "APP_ADMIN_EMAIL=Root@EXAMPLE.org", "", "admin@example.com", "Root@example.org"},
	{"no admin", "APP_ADMIN_EMAIL=", "", "admin@example.com", ""},
	{"a password of eight", "APP_ADMIN_PASSWORD=pässwörd", "", "admin-password", "pässwörd"},
	{"a password of 128", "APP_ADMIN_PASSWORD=" + strings.Repeat("ä", 128), "", "admin-password", strings.Repeat("ä", 128)},
	{"argon2 as OWASP has it", "APP_ARGON2=m=19456,t=2,p=1", "", "m=65536,t=3,p=4", "m=19456,t=2,p=1"},
	{"no throttle", "APP_THROTTLE=off", "", "throttle=true", "throttle=false"},
	{"a net of proxies, by any address of it", "APP_TRUSTED_PROXIES=10.1.2.3/8", "", "proxies=[]", "proxies=[10.0.0.0/8]"},
	{"no proxies", "APP_TRUSTED_PROXIES=", "", "proxies=[]", "proxies=[]"},
	{"no previous secrets", "APP_JWT_PREVIOUS_SECRETS=", "", "jwt-auth-api", "jwt-auth-api"},
	{"no file", "APP_JWT_SECRET_FILE=", "", "jwt-auth-api", "jwt-auth-api"},
	{"several proxies", "APP_TRUSTED_PROXIES=10.0.0.1, ::1,fd00::/8", "", "proxies=[]", "proxies=[10.0.0.1/32 ::1/128 fd00::/8]"},
	{"no docs", "APP_DOCS=off", "", "docs=true", "docs=false"},
	{"docs", "APP_DOCS=on", "", "docs=true", "docs=true"},
	{"a log in JSON", "APP_LOG=json", "", " text ", " json "},
	{"somebody else's variable", "APPLE=1", "", "jwt-auth-api", "jwt-auth-api"},
	{"a variable close to one", "APP_ISSUERS=x", "", "unknown=[]", "unknown=[APP_ISSUERS]"},
	{"a variable far from all", "APP_X=x", "", "unknown=[]", "unknown=[APP_X]"},
	{"from .env", "", "APP_ISSUER=x", "jwt-auth-api", "x"},
	{"the environment beats .env", "APP_ISSUER=x", "APP_ISSUER=y", "jwt-auth-api", "x"},
	{"the environment beats .env with nothing", "APP_ADMIN_EMAIL=", "APP_ADMIN_EMAIL=root@example.org", "admin@example.com", ""},
	{"spaces around", "", "  APP_ISSUER =  x  ", "jwt-auth-api", "x"},
	{"line breaks of Windows", "", "APP_ISSUER=x\r\nAPP_JWT_ALGORITHM=HS256\r\n", "jwt-auth-api", "x"},
	{"export", "", "export APP_ISSUER=x", "jwt-auth-api", "x"},
	{"double quotes", "", `APP_ISSUER=" x # y "`, "jwt-auth-api", " x # y "},
	{"single quotes", "", `APP_ISSUER='"x"'`, "jwt-auth-api", `"x"`},
	{"no escapes in quotes", "", `APP_ISSUER="a\n$b"`, "jwt-auth-api", `a\n$b`},
	{"a comment behind quotes", "", `APP_ISSUER="x # y" # z`, "jwt-auth-api", "x # y"},
	{"a comment right behind quotes", "", `APP_ISSUER='x'#z`, "jwt-auth-api", "x"},
	{"a mark of the byte order", "", "\uFEFFAPP_ISSUER=x", "jwt-auth-api", "x"},
	{"empty quotes", "", `APP_ADMIN_EMAIL=""`, "admin@example.com", ""},
	{"letters at both ends that are equal", "", `APP_ISSUER=xyx`, "jwt-auth-api", `xyx`},
	{"a comment", "", "# APP_ISSUER=y\n\n  # x\nAPP_ISSUER=x # y", "jwt-auth-api", "x"},
	{"a comment in place of a value", "", "APP_ADMIN_EMAIL= # none", "admin@example.com", ""},
	{"a comment behind a tab", "", "APP_ISSUER=x\t# y", "jwt-auth-api", "x"},
	{"a number sign first", "", "APP_ISSUER=#x", "jwt-auth-api", "#x"},
	{"a number sign without a space", "", "APP_ISSUER=x#y", "jwt-auth-api", "x#y"},
	{"an equals sign in a value", "", "APP_ISSUER=x=y", "jwt-auth-api", "x=y"},
}

func TestSettingsAccepted(t *testing.T) {
	const defaults = partsSecret + " jwt-auth-api 15m0s 168h0m0s 127.0.0.1:8000 admin@example.com admin-password m=65536,t=3,p=4 throttle=true proxies=[] docs=true text unknown=[]"
	for _, row := range goodSettings {
		cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, row.environ}, row.dotenv)
		if want := replaced(t, defaults, row.old, row.new); err != nil || settingsText(cfg) != want {
			t.Errorf("%s: got %s and %v, want %s", row.name, settingsText(cfg), err, want)
		}
	}
	secret := strings.Repeat("s", 32)
	cfg, err := loadSettings(nil, "APP_JWT_SECRET="+secret)
	if err != nil || cfg.jwtSecret.reveal() != secret {
		t.Errorf("a secret of 32 bytes in .env: got %v, want it taken", err)
	}
}

// TestSecretsElsewhere reads secrets from files, as an editor ends them, and those of former times.
func TestSecretsElsewhere(t *testing.T) {
	t.Chdir(t.TempDir())
	secret := partsSecret + " "
	for _, end := range []string{"", "\n", "\r\n"} {
		if err := os.WriteFile("secret", []byte(secret+end), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := loadSettings([]string{"APP_JWT_SECRET_FILE=secret", "APP_ADMIN_PASSWORD_FILE=secret"}, "")
		if err != nil || cfg.jwtSecret.reveal() != secret || cfg.adminPassword.reveal() != secret {
			t.Errorf("file that ends with %q: got %q and %q (%v), want %q", end, cfg.jwtSecret.reveal(), cfg.adminPassword.reveal(), err, secret)
		}
	}
	old, older := strings.Repeat("o", 32), strings.Repeat("p", 32)
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_JWT_PREVIOUS_SECRETS=" + old + "," + older, "APP_ADMIN_EMAIL="}, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(cfg, func() time.Time { return time.Unix(1500, 0) }, newLogger("text", io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{partsSecret, old, older} {
		if _, err := s.tokens.verify(signed(secret, b64(plainHeader)+"."+b64(plainClaims)), accessToken); err != nil {
			t.Errorf("a token of the secret %s: got %v, want it accepted", secret, err)
		}
	}
}

// TestSecretFiles reads from a file that .env names what is not to be taken for its end, and what is too short.
func TestSecretFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, row := range []struct{ name, content, dotenv, want string }{
		{"two line breaks", partsSecret + "\n\n", "", partsSecret + "\n"},
		{"spaces", "  " + partsSecret + "\t\n", "", "  " + partsSecret + "\t"},
		{"a line break within", "a\n" + partsSecret, "", "a\n" + partsSecret},
		{"quotes, which are for .env alone", `"` + partsSecret + `"`, "", `"` + partsSecret + `"`},
		{"too short", "hunter2\n", "", "APP_JWT_SECRET: want at least 32 bytes, got 7; make one with: openssl rand -hex 32"},
		{"a secret beside it", partsSecret, "APP_JWT_SECRET=" + partsSecret, "APP_JWT_SECRET_FILE: APP_JWT_SECRET is set as well"},
		{"an empty secret beside it", partsSecret, "APP_JWT_SECRET=", partsSecret},
	} {
		if err := os.WriteFile("secret", []byte(row.content), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := loadSettings(nil, "APP_JWT_SECRET_FILE=secret\n"+row.dotenv)
		got := errText(err)
		if err == nil {
			got = cfg.jwtSecret.reveal()
		}
		if got != row.want {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
	// That the secret itself is missing, which it is for this alone, is no second fault.
	_, err := loadSettings([]string{"APP_JWT_SECRET_FILE=hunter2"}, "")
	if got, want := errText(err), "APP_JWT_SECRET_FILE: can't read the file: no such file or directory"; got != want {
		t.Errorf("a file that is not there: got %q, want %q", got, want)
	}
}

// TestSettingsMakeServer looks for the settings in the server that is made of them.
func TestSettingsMakeServer(t *testing.T) {
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_EMAIL=", "APP_THROTTLE=off",
		"APP_TRUSTED_PROXIES=10.0.0.0/8", "APP_ARGON2=m=19456,t=2,p=1", "APP_JWT_PREVIOUS_SECRETS=" + strings.Repeat("1", 32)}, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(cfg, time.Now, newLogger("text", io.Discard))
	if err != nil || s.throttle != nil || fmt.Sprint(s.proxies) != "[10.0.0.0/8]" || s.passwords.params != cfg.argon2 || len(s.tokens.keys) != 2 {
		t.Errorf("got the throttle %v, the proxies %v, the parameters %v and %d keys (%v), want those of the settings",
			s.throttle, s.proxies, s.passwords.params, len(s.tokens.keys), err)
	}
	pair := s.tokens.issuePair(user{id: "u1"})
	if _, err := newHMACKey([]byte(partsSecret)).open(pair.AccessToken); err != nil {
		t.Errorf("a new token: got %v, want it signed with the secret, not with a previous one", err)
	}
}

// TestSeedMemory looks for the 19 MiB of the admin's hash, which are given back to the system.
func TestSeedMemory(t *testing.T) {
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ARGON2=m=19456,t=2,p=1"}, "")
	if err != nil {
		t.Fatal(err)
	}
	held := func() int {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapSys - m.HeapReleased)
	}
	debug.FreeOSMemory()
	before := held()
	s, err := newServer(cfg, time.Now, newLogger("text", io.Discard))
	if after := held(); err != nil || after-before > 8<<20 {
		t.Errorf("got %d bytes more in use (%v), want less than 8 MiB", after-before, err)
	}
	runtime.KeepAlive(s)
}

// TestRunLogs looks at each line of the log, in both of its formats.
func TestRunLogs(t *testing.T) {
	t.Chdir(t.TempDir())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for format, line := range map[string]*regexp.Regexp{
		"text": regexp.MustCompile(`^time=\S+ level=(INFO msg=(listening addr=127.0.0.1:\d+|"shutting down")|WARN msg="unknown variable" name=APP_LOGS nearest=APP_LOG)$`),
		"json": regexp.MustCompile(`^{"time":"[^"]+","level":"(INFO","msg":"(listening","addr":"127.0.0.1:\d+|shutting down)|WARN","msg":"unknown variable","name":"APP_LOGS","nearest":"APP_LOG)"}$`),
	} {
		var log bytes.Buffer
		err := run(ended, nil, []string{"APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_EMAIL=", "APP_ADDR=127.0.0.1:0", "APP_LOGS=x", "APP_LOG=" + format}, &log)
		if lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n"); err != nil || len(lines) != 3 ||
			slices.ContainsFunc(lines, func(l string) bool { return !line.MatchString(l) }) {
			t.Errorf("%s: got %q and %v, want three lines, each like %s", format, lines, err, line)
		}
	}
	// The second line waits when the fault ends the program.
	var log bytes.Buffer
	err := run(ended, nil, []string{"APP_X=", "APP_Y="}, &log)
	if err == nil || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("no secret: got %v and the log %q, want an error after two lines", err, log.String())
	}
}

// TestArgon2Memory takes memory away from the program until its hashes have no room.
func TestArgon2Memory(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(100 << 20))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, row := range []struct{ params, want string }{
		{"m=19456,t=2,p=2", "accepted"},
		{"m=19456,t=2,p=1", "APP_ARGON2: m=19456,t=2,p=1 takes up to 114 MiB here, and there are 100"},
		{"m=65536,t=3,p=4", "APP_ARGON2: m=65536,t=3,p=4 takes up to 192 MiB here, and there are 100"},
	} {
		_, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ARGON2=" + row.params}, "")
		if got := errText(err); got != row.want {
			t.Errorf("%s: got %s, want %s", row.params, got, row.want)
		}
	}
}

// TestDocumentedPassword listens for all to reach, which needs a password that nobody knows, or no admin.
func TestDocumentedPassword(t *testing.T) {
	for _, environ := range []string{"APP_ADMIN_PASSWORD=another-password", "APP_ADMIN_EMAIL="} {
		_, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ADDR=0.0.0.0:80", environ}, "")
		if err != nil {
			t.Errorf("%s: got %v, want it accepted", environ, err)
		}
	}
}

// TestEnvExample holds .env.example against the settings: each is there in their order, with its default.
func TestEnvExample(t *testing.T) {
	text, err := os.ReadFile(".env.example")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			got = append(got, line)
		}
	}
	for _, setting := range knownSettings {
		want = append(want, setting.name+"="+setting.fallback)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	values, faults := parseDotenv(string(text))
	for _, setting := range knownSettings {
		if values[setting.name] != setting.fallback {
			t.Errorf("%s: got %q, want %q", setting.name, values[setting.name], setting.fallback)
		}
	}
	if faults != nil {
		t.Errorf("got %v, want a file that is read without a fault", faults)
	}
}

// TestSeededAdmin looks at what the settings make of the server.
func TestSeededAdmin(t *testing.T) {
	s := partsServer(t)
	u, _ := s.users.withAddress("ADMIN@example.com")
	if u.id != "admin-0" || u.name != "Admin" || u.scopes != "me admin" || s.passwords.verify("admin-password", u.hash.reveal()) != nil {
		t.Errorf("got %+v, want admin-0 with the scopes me and admin, and the password of the settings", u)
	}
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_EMAIL="}, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err = newServer(cfg, time.Now, newLogger("text", io.Discard))
	if err != nil || s.users.count() != 0 {
		t.Errorf("no address: got %d users and %v, want none", s.users.count(), err)
	}
}

// TestAddressHash looks at what the log says of an address: enough to tell two apart, whatever their letter case, and
// nothing to anyone without the key.
func TestAddressHash(t *testing.T) {
	s := partsServer(t)
	first := s.addressHash("User@example.com").String()
	if !regexp.MustCompile(`^address_hash=[0-9a-f]{16}$`).MatchString(first) {
		t.Errorf("got %s, want 16 hexadecimal digits", first)
	}
	if got := s.addressHash("uSER@EXAMPLE.com").String(); got != first {
		t.Errorf("another letter case: got %s, want %s", got, first)
	}
	if got := s.addressHash("user2@example.com").String(); got == first {
		t.Errorf("another address: got %s for both, want another", got)
	}
	s.logKey = newSecret(strings.Repeat("1", 32))
	if got := s.addressHash("User@example.com").String(); got == first {
		t.Errorf("another key: got %s for both, want another", got)
	}
}

// leaks returns the spelling in which a text holds a value: as it is, in hexadecimal, in base64 or as a list of bytes.
func leaks(text, value string) string {
	for _, spelling := range []string{
		value,
		fmt.Sprintf("%x", value),
		fmt.Sprintf("%X", value),
		fmt.Sprintf("% x", value),
		strings.Trim(fmt.Sprint([]byte(value)), "[]"),
		base64.StdEncoding.EncodeToString([]byte(value))[:8],
	} {
		if strings.Contains(text, spelling) {
			return spelling
		}
	}
	return ""
}

// verbs are all that fmt has, with the flags that change what is printed.
var verbs = []string{"%v", "%+v", "%#v", "%s", "%+s", "%q", "%#q", "%+q", "%x", "% x", "%#x", "%X", "%d", "%t", "%b", "%c", "%o",
	"%U", "%e", "%g", "%p", "%T", "%20s", "%.3s", "%z"}

func TestSecretPrinted(t *testing.T) {
	const value = "hunter2-hunter2"
	s := newSecret(value)
	for _, verb := range verbs {
		got := fmt.Sprintf(verb, s)
		if verb != "%p" && verb != "%T" && got != "********" {
			t.Errorf("%s: got %s, want ********", verb, got)
		}
		for name, nested := range map[string]any{
			"itself":              s,
			"a pointer":           &s,
			"an exported field":   struct{ Secret secret }{s},
			"an unexported field": struct{ secret secret }{s},
			"a pointer's field":   &struct{ secret *secret }{&s},
			"a list":              []secret{s},
			"a list in a field":   struct{ secrets []secret }{[]secret{s}},
			"a map":               map[secret]secret{s: s},
			"an interface":        struct{ any }{s},
			"a user":              user{hash: s},
			"a pointer to a user": &user{hash: s},
			"settings":            settings{jwtSecret: s, adminPassword: s},
		} {
			if leak := leaks(fmt.Sprintf(verb, nested), value); leak != "" {
				t.Errorf("%s of %s: got %s in it, want it hidden", verb, name, leak)
			}
		}
	}
	if got := newSecret(value).reveal(); got != value {
		t.Errorf("reveal: got %s, want %s", got, value)
	}
	if got := (secret{}).reveal() + fmt.Sprint(secret{}); got != "********" {
		t.Errorf("no secret: got %s, want it printed like one", got)
	}
}

func TestSecretLogged(t *testing.T) {
	const value = "hunter2-hunter2"
	s := newSecret(value)
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		logger := slog.New(handler).With("with", s)
		for _, nested := range []any{s, &s, struct{ Secret secret }{s}, struct{ secret secret }{s}, []secret{s}, user{hash: s}, slog.GroupValue(slog.Any("a", s))} {
			log.Reset()
			logger.Info("message", "secret", nested, slog.Group("group", "secret", s))
			if leak := leaks(log.String(), value); leak != "" || strings.Count(log.String(), "********") < 2 {
				t.Errorf("got %s, want the secrets as ********", log.String())
			}
		}
	}
	for want, nested := range map[string]any{
		`"********"`:              s,
		`{"Secret":"********"}`:   struct{ Secret secret }{s},
		`["********"]`:            []*secret{&s},
		`{"********":"********"}`: map[secret]secret{s: s},
		`{"a":["********"]}`:      map[string]any{"a": []any{s}},
	} {
		if got, err := json.Marshal(nested); err != nil || string(got) != want {
			t.Errorf("encoding/json: got %s and %v, want %s", got, err, want)
		}
	}
}

// TestServerPrinted prints all that has secrets in it.
func TestServerPrinted(t *testing.T) {
	s := partsServer(t)
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_PASSWORD=hunter2-hunter2"}, "")
	if err != nil {
		t.Fatal(err)
	}
	u, _ := s.users.withID("u1")
	for _, verb := range verbs {
		for name, v := range map[string]any{
			"server": s, "server's value": *s, "settings": cfg, "settings' address": &cfg, "users": s.users, "user": u,
			"all users": s.users.inOrder, "tokens": s.tokens, "key": s.tokens.keys[0],
		} {
			text := fmt.Sprintf(verb, v)
			for _, value := range []string{partsSecret, "hunter2-hunter2", u.hash.reveal()} {
				if leak := leaks(text, value); leak != "" {
					t.Errorf("%s of %s: got %s in it, want it hidden", verb, name, leak)
				}
			}
		}
	}
}

func TestNewLogger(t *testing.T) {
	for _, row := range []struct{ format, want string }{
		{"text", "level=INFO msg=message"},
		{"json", `"level":"INFO","msg":"message"`},
	} {
		var log bytes.Buffer
		newLogger(row.format, &log).Info("message")
		if !strings.Contains(log.String(), row.want) {
			t.Errorf("%s: got %s, want %s in it", row.format, log.String(), row.want)
		}
	}
}

// A lockedBuffer is a bytes.Buffer that is safe for concurrent use.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestRequestLine holds the lines against those of log/slog.
func TestRequestLine(t *testing.T) {
	end := time.Date(2026, 11, 24, 7, 8, 9, 1_023_456, time.UTC)
	for _, l := range []requestLine{
		{end, slog.LevelInfo, "GET", "GET /me", 200, 107, 23456, netip.MustParseAddr("127.0.0.1"), "ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
		{end, slog.LevelError, "unknown", "", 503, 0, 5 * time.Second, netip.MustParseAddr("2001:db8::1"), "A"},
		{end, slog.LevelInfo, "PUT", "/me", 405, 31, 1, netip.MustParseAddr("::1"), "A"},
		{end.Truncate(time.Second), slog.LevelInfo, "HEAD", "GET /me", 200, 0, 0, netip.MustParseAddr("::1"), "A"},
		{end.Truncate(time.Second).Add(-1), slog.LevelInfo, "GET", "/", 404, 22, time.Microsecond, netip.MustParseAddr("::1"), "A"},
		{end.In(time.FixedZone("", -90*60)), slog.LevelInfo, "GET", "/", 404, 22, time.Hour, netip.MustParseAddr("::1"), "A"},
	} {
		record := slog.NewRecord(l.time, l.level, "request", 0)
		record.AddAttrs(slog.String("method", l.method), slog.String("route", l.route), slog.Int("status", l.status), slog.Int("bytes", l.bytes),
			slog.Duration("duration", l.duration), slog.String("client", l.client.String()), slog.String("request_id", l.requestID))
		var text, json bytes.Buffer
		slog.NewTextHandler(&text, nil).Handle(t.Context(), record)
		slog.NewJSONHandler(&json, nil).Handle(t.Context(), record)
		for format, want := range map[string]string{"text": text.String(), "json": json.String()} {
			var got bytes.Buffer
			newLogger(format, &got).request(l)
			if got.String() != want {
				t.Errorf("%s: got %s, want %s", format, got.String(), want)
			}
		}
	}
}

// TestDeadline plays what net/http and a connection do to a deadline, on a clock of its own: by is when calls are to end,
// wait and done are a call's begin and end, and a time alone passes. What the connection is told is a time from the start,
// or none.
func TestDeadline(t *testing.T) {
	for _, row := range []struct{ name, script, want string }{
		{"none is what a connection has", "wait done", ""},
		{"nothing waits, nothing is told", "by 5s by 10s by none", ""},
		{"the last one is told when something waits, a little later", "by 5s by 10s wait done", "10.1s"},
		{"it is told once", "by 5s wait done wait done", "5.1s"},
		{"what waits already hears of it", "wait by 5s by none", "5.1s none"},
		{"a later one is taken as the one before while it is not too early", "by 5s wait done 100ms by 5s wait done", "5.1s"},
		{"a later one is told when it is", "by 5s wait done 100000001ns by 5s wait done", "5.1s 5.200000001s"},
		{"an earlier one is told", "by 10s wait done by 9999ms wait done", "10.1s 10.099s"},
		{"none after one is told", "by 5s wait done by none wait done", "5.1s none"},
		{"one after none is told", "by 5s wait done by none wait done by 5s wait done", "5.1s none 5.1s"},
		{"one in the past ends what waits", "by 10s wait by -1s", "10.1s -1s"},
		{"one in the past ends what comes, and is not told", "by -1s wait", "expired"},
		{"now is the past", "by 0s wait", "expired"},
		{"a moment on is not", "by 1ns wait done", "100.000001ms"},
		{"one that has passed ends what comes", "by 1s 1s wait", "expired"},
		{"so it does if it was told, as the connection sees to it", "by 1s wait done 2s wait", "1.1s"},
		{"what was expired is over when another is set", "by 10s wait done by -1s wait by none by 10s wait done", "10.1s expired"},
		{"what expires is not waiting", "by -1s wait by 5s", "expired"},
		{"one in the past that was told is replaced", "wait by -1s done by 10s wait done", "-1s 10.1s"},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var told []string
			d := deadline{tell: func(at time.Time) error {
				if at.IsZero() {
					told = append(told, "none")
				} else {
					told = append(told, at.Sub(start).String())
				}
				return nil
			}}
			playDeadline(t, &d, row.script, func() { told = append(told, "expired") })
			if got := strings.Join(told, " "); got != row.want {
				t.Errorf("%s: got %q, want %q", row.name, got, row.want)
			}
		})
	}
}

// playDeadline plays one script of TestDeadline.
func playDeadline(t *testing.T, d *deadline, script string, expired func()) {
	words := strings.Fields(script)
	for i := 0; i < len(words); i++ {
		switch words[i] {
		case "by":
			i++
			if words[i] == "none" {
				d.set(time.Time{})
			} else {
				d.set(time.Now().Add(mustDuration(t, words[i])))
			}
		case "wait":
			if err := d.begin(); err != nil {
				expired()
			}
		case "done":
			d.end()
		default:
			<-time.After(mustDuration(t, words[i]))
		}
	}
}

func mustDuration(t *testing.T, text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A lazyRow is a call that waits for a peer who does nothing, and what sets its deadline.
type lazyRow struct {
	name string
	wait func(*lazyConn) (int, error)
	set  func(*lazyConn, time.Time) error
}

var lazyRows = []lazyRow{
	{"a read", readByte, (*lazyConn).SetReadDeadline},
	{"a write", writeAll, (*lazyConn).SetWriteDeadline},
	{"a read, by the deadline of both", readByte, (*lazyConn).SetDeadline},
	{"a write, by the deadline of both", writeAll, (*lazyConn).SetDeadline},
}

func readByte(c *lazyConn) (int, error) { return c.Read(make([]byte, 1)) }

// writeAll fills the buffers of both ends.
func writeAll(c *lazyConn) (n int, err error) {
	for err == nil {
		n, err = c.Write(make([]byte, 1<<20))
	}
	return n, err
}

// TestLazyConn has deadlines pass before real reads and writes begin, while they wait, and at once.
func TestLazyConn(t *testing.T) {
	for _, row := range lazyRows {
		row.test(t)
	}
}

func (row lazyRow) test(t *testing.T) {
	conn, peer := tcpPair(t)
	c := newLazyConn(conn)
	past := time.Unix(1, 0)
	row.set(c, past)
	if n, err := row.wait(c); n != 0 || err != os.ErrDeadlineExceeded {
		t.Errorf("%s whose deadline has passed: got %d bytes and %v, want it to end before it begins", row.name, n, err)
	}
	start := time.Now()
	row.set(c, start.Add(20*time.Millisecond))
	if _, err := row.wait(c); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) < 20*time.Millisecond {
		t.Errorf("%s: got %v after %v, want its deadline", row.name, err, time.Since(start))
	}
	row.set(c, time.Time{})
	ended := make(chan error)
	go func() {
		_, err := row.wait(c)
		ended <- err
	}()
	for waiting := false; !waiting; waiting = c.read.isWaiting() || c.write.isWaiting() {
		runtime.Gosched()
	}
	row.set(c, past)
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s that waits: got %v, want its deadline", row.name, err)
	}
	row.set(c, time.Time{})
	io.WriteString(peer, "x")
	if _, err := readByte(c); err != nil {
		t.Errorf("%s: a read after it: got %v, want none", row.name, err)
	}
	if c.read.isWaiting() || c.write.isWaiting() {
		t.Errorf("%s: got a call that has not ended, want none", row.name)
	}
}

func (d *deadline) isWaiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

// tcpPair returns both ends of a connection over loopback.
func tcpPair(t *testing.T) (server *net.TCPConn, client net.Conn) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if client, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	closed := time.AfterFunc(10*time.Second, func() { conn.Close() }) // or what waits for ever would
	t.Cleanup(func() { closed.Stop(); conn.Close(); client.Close() })
	return conn.(*net.TCPConn), client
}

// A writeLog notes each write, and when it was.
type writeLog struct {
	start  time.Time
	writes []string
}

func (w *writeLog) Write(b []byte) (int, error) {
	w.writes = append(w.writes, fmt.Sprint(time.Since(w.start), " ", string(b)))
	return len(b), nil
}

// TestLineBuffer has lines come at these milliseconds of a clock of their own. The lines are a, b, and so on.
func TestLineBuffer(t *testing.T) {
	for _, row := range []struct {
		name string
		at   []time.Duration
		want []string
	}{
		{"a line alone is written at once", []time.Duration{0}, []string{"0s a"}},
		{"those that come soon after it are written together", []time.Duration{0, 1, 9}, []string{"0s a", "10ms bc"}},
		{"one that comes when nothing waited is written at once", []time.Duration{0, 11}, []string{"0s a", "11ms b"}},
		{"those after that one wait for as long", []time.Duration{0, 11, 12, 20}, []string{"0s a", "11ms b", "21ms cd"}},
		{"those that come after others have waited wait too", []time.Duration{0, 5, 11, 19}, []string{"0s a", "10ms b", "20ms cd"}},
		{"nothing waits any more when nothing has come", []time.Duration{0, 5, 21, 25}, []string{"0s a", "10ms b", "21ms c", "31ms d"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &writeLog{start: time.Now()}
			b := newLineBuffer(w, nil)
			for i, at := range row.at {
				<-time.After(at*time.Millisecond - time.Since(w.start))
				if n, err := b.Write([]byte{'a' + byte(i)}); n != 1 || err != nil {
					t.Errorf("%s: got %d and %v, want a byte written", row.name, n, err)
				}
			}
			<-time.After(time.Minute)
			closing := time.Now()
			b.close()
			if !slices.Equal(w.writes, row.want) || time.Since(closing) > 0 {
				t.Errorf("%s: got %q, and %v to close, want %q and none", row.name, w.writes, time.Since(closing), row.want)
			}
		})
	}
}

// TestLineBufferCloses writes what waits at the end, and waits for it no longer than is good.
func TestLineBufferCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &writeLog{start: time.Now()}
		b := newLineBuffer(w, nil)
		io.WriteString(b, "a")
		synctest.Wait()
		io.WriteString(b, "b")
		b.close()
		if want := []string{"0s a", "0s b"}; !slices.Equal(w.writes, want) {
			t.Errorf("got %q, want %q", w.writes, want)
		}
		reader, stuck := io.Pipe()
		b = newLineBuffer(stuck, nil)
		io.WriteString(b, "a")
		b.close()
		if took := time.Since(w.start); took != time.Second {
			t.Errorf("a log that is stuck: got %v to close, want 1s", took)
		}
		reader.Close()
	})
}

// TestLogStuck has lines come while a write hangs. They hold up nobody. Those for which there is no room are counted.
func TestLogStuck(t *testing.T) {
	line := strings.Repeat("x", 1023) + "\n"
	for _, row := range []struct {
		name string
		last []string // of the lines, when there is room for one
		lost int
	}{
		{"none too many", []string{line}, 0},
		{"one too many", []string{line, "\n"}, 1},
		{"one too long", []string{line + "\n", line}, 1},
		{"three too many", []string{line + "\n", line, "\n", line}, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			reader, writer := io.Pipe()
			_, lines := startLog("text", writer)
			start := time.Now()
			io.WriteString(lines, "first\n")
			<-time.After(time.Second)
			for range 4<<10 - 1 {
				io.WriteString(lines, line)
			}
			for _, line := range row.last {
				io.WriteString(lines, line)
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("%s: got %v for lines that nobody reads, want none", row.name, took-time.Second)
			}
			got := make(chan string)
			go func() {
				text, _ := io.ReadAll(reader)
				got <- string(text)
			}()
			lines.close()
			writer.Close()
			want := "first\n" + strings.Repeat(line, 4<<10)
			if row.lost > 0 {
				want += fmt.Sprintf("level=WARN msg=\"log lines lost\" lines=%d\n", row.lost)
			}
			text := regexp.MustCompile(`time=\S+ `).ReplaceAllString(<-got, "")
			if text != want {
				t.Errorf("%s: got %d bytes that end in %.90q, want %d that end in %.90q", row.name, len(text), text[max(0, len(text)-90):], len(want), want[len(want)-90:])
			}
		})
	}
}

// TestLogSlow loses lines, and has as many come again while those before them are written: the number is not lost too.
func TestLogSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		_, lines := startLog("text", writer)
		line := strings.Repeat("x", 1<<20-1) + "\n"
		io.WriteString(lines, "first\n")
		synctest.Wait()
		for range 4 + 1000 {
			io.WriteString(lines, line)
		}
		io.ReadFull(reader, make([]byte, 6))
		<-time.After(time.Second)
		for range 4 { // The report of what was lost is there already, so that one has no room.
			io.WriteString(lines, line)
		}
		got := make(chan string)
		go func() {
			text, _ := io.ReadAll(reader)
			got <- string(text)
		}()
		<-time.After(time.Second)
		lines.close()
		writer.Close()
		text := <-got
		if !strings.Contains(text, " lines=1000\n") || !strings.HasSuffix(text, " lines=1\n") || strings.Count(text, line) != 4+3 {
			t.Errorf("got %d lines and %.100q at the end, want 7 and two reports, of 1000 and of 1", strings.Count(text, line), text[max(0, len(text)-100):])
		}
	})
}

// TestLineBufferConcurrently has eight write at once: every line is whole, none is lost, and those of each stay in order.
func TestLineBufferConcurrently(t *testing.T) {
	line := func(writer, n int) string { return fmt.Sprintf("%d %d %s\n", writer, n, strings.Repeat("x", n%200)) }
	var written bytes.Buffer
	b := newLineBuffer(&written, nil)
	var wg sync.WaitGroup
	for writer := range 8 {
		wg.Go(func() {
			for n := range 2000 {
				io.WriteString(b, line(writer, n))
			}
		})
	}
	wg.Wait()
	b.close()
	var next [8]int
	for got := range strings.Lines(written.String()) {
		writer := int(got[0] - '0')
		if writer < 0 || writer >= len(next) || got != line(writer, next[writer]) {
			t.Fatalf("got the line %q after %d of each, want the next of one", got, next)
		}
		next[writer]++
	}
	if next != [8]int{2000, 2000, 2000, 2000, 2000, 2000, 2000, 2000} {
		t.Errorf("got %d lines, want 2000 of each", next)
	}
}

// A started is a run of the program whose log a test reads line by line.
type started struct {
	*testing.T
	log    *bufio.Scanner
	cancel context.CancelFunc
	ended  chan error
}

// startRun runs the program in an empty directory.
func startRun(t *testing.T, environ ...string) *started {
	t.Helper()
	t.Chdir(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	r := &started{t, bufio.NewScanner(reader), cancel, make(chan error, 1)}
	go func() {
		err := run(ctx, nil, append([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_EMAIL=", "APP_ADDR=127.0.0.1:0"}, environ...), writer)
		writer.Close()
		r.ended <- err
	}()
	return r
}

// await reads the log up to a message, and returns the line.
func (r *started) await(msg string) string {
	r.Helper()
	for r.log.Scan() {
		if strings.Contains(r.log.Text(), " msg="+msg) {
			return r.log.Text()
		}
	}
	r.Fatalf("got the end of the log, want %s (%v)", msg, <-r.ended)
	return ""
}

// drain reads what is left of the log, and returns it with the program's error.
func (r *started) drain() (log string, err error) {
	for r.log.Scan() {
		log += r.log.Text() + "\n"
	}
	return log, <-r.ended
}

func TestRun(t *testing.T) {
	r := startRun(t, "APP_NAME=hunter2")
	if got := r.await(`"unknown variable"`); !strings.HasSuffix(got, " name=APP_NAME nearest=APP_ADDR") || strings.Contains(got, "hunter2") {
		t.Errorf("got %s, want the name and the nearest, and not the value", got)
	}
	_, addr, _ := strings.Cut(r.await("listening"), " addr=")
	body := make(chan string)
	go func() {
		resp, err := http.Get("http://" + addr + "/healthz")
		if err != nil {
			body <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		body <- fmt.Sprint(resp.StatusCode, " ", string(text))
	}()
	r.await("request")
	if got := <-body; got != `200 {"status":"ok"}` {
		t.Errorf(`got %s, want 200 {"status":"ok"}`, got)
	}
	r.cancel()
	if log, err := r.drain(); err != nil || !strings.Contains(log, `msg="shutting down"`) {
		t.Errorf("a signal: got %v and %s, want the log to say so and no error", err, log)
	}
}

// TestRunFinishes ends the program in the middle of a request, which is answered before it ends.
func TestRunFinishes(t *testing.T) {
	r := startRun(t)
	_, addr, _ := strings.Cut(r.await("listening"), " addr=")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The server has read the headers when it answers with 100.
	io.WriteString(conn, "POST /auth/refresh HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	answer := bufio.NewReader(conn)
	if line, err := answer.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q and %v, want to be told to go on", line, err)
	}
	answer.ReadString('\n')
	r.cancel()
	r.await(`"shutting down"`)
	go io.WriteString(conn, "{}")
	r.await("request")
	if line, err := answer.ReadString('\n'); err != nil || line != "HTTP/1.1 422 Unprocessable Entity\r\n" {
		t.Errorf("got %q and %v, want the answer to the request in flight", line, err)
	}
	if _, err := r.drain(); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

// TestServeFails closes the listener under the server.
func TestServeFails(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if err := partsServer(t).serve(t.Context(), listener, defaultTimeouts); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

// A failingListener has something that passes go wrong first, and then is closed.
type failingListener struct {
	net.Listener
	failed bool
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failed {
		return nil, net.ErrClosed
	}
	l.failed = true
	return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept", syscall.EMFILE)}
}

func (l *failingListener) Addr() net.Addr { return &net.TCPAddr{} }
func (l *failingListener) Close() error   { return nil }

// TestServeLogs looks for what net/http has to say in the log of the service.
func TestServeLogs(t *testing.T) {
	s := partsServer(t)
	var log lockedBuffer
	s.log = newLogger("text", &log)
	s.serve(t.Context(), &failingListener{}, defaultTimeouts)
	if want := `level=WARN msg="http: Accept error: accept: accept: too many open files; retrying in 5ms"`; !strings.Contains(log.String(), want) {
		t.Errorf("got %s, want %s", log.String(), want)
	}
}

// A pipeListener accepts connections that are in memory alone, and so live on the clock of a synctest bubble.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipeListener() *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.close()
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial returns a connection, or nil if the listener is closed.
func (l *pipeListener) dial(t *testing.T) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	select {
	case l.conns <- server:
		return client
	case <-l.closed:
		return nil
	}
}

// A serving is a server that answers until the test ends, or cancel is called.
type serving struct {
	*server
	addr   string
	cancel context.CancelFunc
	ended  chan struct{} // closed when serve has returned
	err    error         // what it returned
}

func startServing(t *testing.T, s *server, listener net.Listener, limits timeouts) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	live := &serving{server: s, addr: listener.Addr().String(), cancel: cancel, ended: make(chan struct{})}
	go func() {
		live.err = s.serve(ctx, listener, limits)
		close(live.ended)
	}()
	t.Cleanup(func() {
		cancel()
		if <-live.ended; live.err != nil {
			t.Errorf("serve: got %v, want no error", live.err)
		}
	})
	return live
}

// serveTCP serves on a port of loopback.
func serveTCP(t *testing.T, s *server, limits timeouts) *serving {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startServing(t, s, listener, limits)
}

// dial connects. A test that would wait for ever ends after ten seconds.
func (live *serving) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", live.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// ask sends a request as it stands, and returns the answer as "200 body", or the reason that there is none.
func ask(conn net.Conn, request string) string {
	go io.WriteString(conn, request)
	got, _ := readAnswer(bufio.NewReader(conn))
	return got
}

// readAnswer reads the next answer of a connection.
func readAnswer(conn *bufio.Reader) (answer string, header http.Header) {
	resp, err := http.ReadResponse(conn, nil)
	if err != nil {
		return err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error(), nil
	}
	if resp.Close { // http.ReadResponse takes it out.
		resp.Header.Set("Connection", "close")
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body)), resp.Header
}

const (
	askHealth = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	healthy   = `200 {"status":"ok"}`

	loginForm = "username=user@example.com&password=secret123"
	askLogin  = "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 44\r\n\r\n" + loginForm

	askRegister = "POST /auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 61\r\n\r\n" +
		`{"email":"new@example.com","password":"secret123","name":"N"}`

	// refreshHeader lacks the empty line.
	refreshHeader = "POST /auth/refresh HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n"
)

// stalls are clients that send something, and then nothing, or a byte a second. They get this answer, if any, and are
// closed after this time.
var stalls = []struct {
	name, sends, drips, want string
	closed                   time.Duration
}{
	{"never sends", "", "", "unexpected EOF", 5 * time.Second},
	{"stalls in the first line", "GET /healthz", "", "400 400 Bad Request", 5 * time.Second},
	{"stalls in the header", refreshHeader, "", "unexpected EOF", 5 * time.Second},
	{"drips the header", refreshHeader + "X: ", strings.Repeat("x", 60), "unexpected EOF", 5 * time.Second},
	{"stalls before the body", refreshHeader + "\r\n", "", `408 {"detail":"Request Timeout"}`, 10 * time.Second},
	{"stalls in the body", refreshHeader + "\r\n{", "", `408 {"detail":"Request Timeout"}`, 10 * time.Second},
	{"drips the body", refreshHeader + "\r\n{", strings.Repeat(" ", 18), `408 {"detail":"Request Timeout"}`, 10 * time.Second},
	{"stalls in a chunk", replaceOnce(refreshHeader, "Content-Length: 20", "Transfer-Encoding: chunked") + "\r\n5\r\n{", "", `408 {"detail":"Request Timeout"}`, 10 * time.Second},
	{"stalls in a body that nobody reads", replaceOnce(askHealth, "\r\n\r\n", "\r\nContent-Length: 9\r\n\r\n"), "", healthy, 10 * time.Second},
	{"sends no second request", askHealth, "", healthy, time.Minute},
}

func replaceOnce(text, old, new string) string { return strings.Replace(text, old, new, 1) }

// TestStalledClients has five clients of each kind on a clock of their own, beside one that asks every second.
func TestStalledClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipeListener()
		startServing(t, partsServer(t), listener, defaultTimeouts)
		start := time.Now()
		var wg sync.WaitGroup
		for _, row := range stalls {
			for range 5 {
				conn := listener.dial(t)
				wg.Go(func() {
					go func() {
						io.WriteString(conn, row.sends)
						for _, b := range []byte(row.drips) {
							<-time.After(time.Second)
							conn.Write([]byte{b})
						}
					}()
					reader := bufio.NewReader(conn)
					got, header := readAnswer(reader)
					if got != row.want {
						t.Errorf("%s: got %s, want %s", row.name, got, row.want)
					}
					if close := header.Get("Connection"); header != nil && (close == "close") != (row.sends != askHealth) {
						t.Errorf("%s: got Connection: %q, want it closed unless all was sent", row.name, close)
					}
					reader.ReadByte() // Waits for the end.
					// After an answer net/http gives the client half a second to read it.
					if took := time.Since(start); took < row.closed || took > row.closed+time.Second {
						t.Errorf("%s: got it closed after %v, want %v", row.name, took, row.closed)
					}
				})
			}
		}
		for range 15 {
			if got := ask(listener.dial(t), askHealth); got != healthy {
				t.Errorf("another client: got %s, want %s", got, healthy)
			}
			<-time.After(time.Second)
		}
		wg.Wait()
	})
}

// TestStalledSockets does the same to real sockets with less time, and counts the goroutines that it leaves behind.
func TestStalledSockets(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	live := serveTCP(t, partsServer(t), timeouts{200 * time.Millisecond, 400 * time.Millisecond, 2 * time.Second, 400 * time.Millisecond, time.Second})
	start := time.Now()
	closed := make(chan struct{}, 50)
	for range cap(closed) / len(stalls) {
		for _, row := range stalls {
			conn := live.dial(t)
			go func() {
				io.WriteString(conn, row.sends)
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: got a connection that is open after %v, want it closed", row.name, time.Since(start))
				}
				closed <- struct{}{}
			}()
		}
	}
	for n := 0; n < cap(closed); {
		if got := ask(live.dial(t), replaceOnce(askHealth, "\r\n\r\n", "\r\nConnection: close\r\n\r\n")); got != healthy {
			t.Fatalf("another client: got %s, want %s", got, healthy)
		}
		select {
		case <-closed:
			n++
		default:
		}
	}
	live.cancel()
	<-live.ended
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("got %d goroutines, want the %d from before:\n%s", runtime.NumGoroutine(), goroutines, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// TestListStreams has clients read the list of 20,000 users for longer than an answer's time, and one stop reading. What
// is not read is not in memory anywhere: the list waits for its client.
func TestListStreams(t *testing.T) {
	for _, row := range []struct {
		name  string
		pause time.Duration // after each 16 KiB; a page of users has about 30
		whole bool
	}{
		{"reads at once", 0, true},
		{"reads slowly", 4 * time.Second, true},
		{"stops for longer than a page's time", 11 * time.Second, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := partsServer(t)
			for n := range 20_000 {
				s.users.add(user{id: fmt.Sprint("id ", n), email: fmt.Sprintf("user-%d@example.com", n), name: strings.Repeat("n", 50), scopes: "me"})
			}
			admin, _ := s.users.withID("admin-0")
			listener := newPipeListener()
			startServing(t, s, listener, defaultTimeouts)
			conn := listener.dial(t)
			start := time.Now()
			io.WriteString(conn, "GET /admin/users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+s.tokens.issuePair(admin).AccessToken+"\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			for err == nil {
				_, err = io.CopyN(&body, resp.Body, 16<<10)
				<-time.After(row.pause)
			}
			var list []json.RawMessage
			whole := err == io.EOF && json.Unmarshal(body.Bytes(), &list) == nil && len(list) == 20_002
			if whole != row.whole || row.pause > 0 && row.whole && time.Since(start) < time.Minute {
				t.Errorf("%s: got %d users in %d bytes after %v (%v), want the whole list: %t", row.name, len(list), body.Len(), time.Since(start), err, row.whole)
			}
			if !row.whole && time.Since(start) > 30*time.Second {
				t.Errorf("%s: got an answer of %v, want it cut off", row.name, time.Since(start))
			}
		})
	}
}

// TestBusy holds the one slot, and asks for all that does not need it while a login and a registration wait.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := partsServer(t)
		s.passwords = fullPasswords(1, 0)
		var log lockedBuffer
		s.log = newLogger("text", &log)
		listener := newPipeListener()
		startServing(t, s, listener, defaultTimeouts)
		start := time.Now()
		var wg sync.WaitGroup
		for _, request := range []string{askLogin, askRegister} {
			conn := listener.dial(t)
			wg.Go(func() {
				io.WriteString(conn, request)
				got, header := readAnswer(bufio.NewReader(conn))
				if want := `503 {"detail":"busy, try again"}`; got != want || header.Get("Retry-After") != "1" || time.Since(start) != 5*time.Second {
					t.Errorf("got %s and Retry-After: %s after %v, want %s and 1 after 5s", got, header.Get("Retry-After"), time.Since(start), want)
				}
			})
		}
		synctest.Wait()
		if got := s.passwords.queued.Load(); got != 2 {
			t.Errorf("got %d who wait, want 2", got)
		}
		admin, _ := s.users.withID("admin-0")
		pair := s.tokens.issuePair(admin)
		refresh := `{"refresh_token":"` + pair.RefreshToken + `"}`
		for _, request := range []string{
			askHealth,
			"GET /me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + pair.AccessToken + "\r\n\r\n",
			"GET /admin/users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + pair.AccessToken + "\r\n\r\n",
			replaceOnce(refreshHeader, "20", fmt.Sprint(len(refresh))) + "\r\n" + refresh,
		} {
			line, _, _ := strings.Cut(request, " HTTP")
			if got := ask(listener.dial(t), request); !strings.HasPrefix(got, "200 ") || time.Since(start) != 0 {
				t.Errorf("%s: got %s after %v, want 200 at once", line, got, time.Since(start))
			}
		}
		wg.Wait()
		synctest.Wait()
		if at0, at5 := strings.Count(log.String(), " duration=0s "), strings.Count(log.String(), " duration=5s "); at0 != 4 || at5 != 2 {
			t.Errorf("got the log %s, want four requests of 0s and two of 5s", log.String())
		}
	})
}

// cutBody is a request whose body is to have one size and has another.
func cutBody(size, sent int) string {
	return replaceOnce(refreshHeader, "20", fmt.Sprint(size)) + "\r\n{}" + strings.Repeat(" ", sent-2)
}

func sizedBody(size int) string { return cutBody(size, size) }

func chunkedBody(size int) string {
	return replaceOnce(refreshHeader, "Content-Length: 20", "Transfer-Encoding: chunked") +
		fmt.Sprintf("\r\n%x\r\n{}%s\r\n0\r\n\r\n", size, strings.Repeat(" ", size-2))
}

// TestLargeBodies has as many large bodies in memory as there is room for. A body of 4 KiB needs none, and each
// gives its place back, however it ends.
func TestLargeBodies(t *testing.T) {
	const busy, missing = `503 {"detail":"busy, try again"}`, `422 {"detail":[{"type":"missing"`
	const large, broken = `413 {"detail":"Content Too Large"}`, `400 {"detail":"There was an error parsing the body"}`
	s := partsServer(t)
	if places := cap(s.largeBodies); places != 128 {
		t.Fatalf("got %d places, want 128", places)
	}
	live := serveTCP(t, s, defaultTimeouts)
	for _, row := range []struct {
		name    string
		held    int
		request string
		want    string
	}{
		{"no other, the largest body", 0, sizedBody(64 << 10), missing},
		{"one place left", 127, sizedBody(64 << 10), missing},
		{"one place left, the largest body in chunks", 127, chunkedBody(64 << 10), missing},
		{"one place left, a chunk over the limit", 127, chunkedBody(64<<10 + 1), large},
		{"one place left, a body that breaks off", 127, cutBody(64<<10, 8<<10), broken},
		{"no place left", 128, sizedBody(4<<10 + 1), busy},
		{"no place left, chunks", 128, chunkedBody(4<<10 + 1), busy},
		{"no place left, a body that breaks off", 128, cutBody(64<<10, 4<<10+1), busy},
		{"no place left, a body that breaks off in time", 128, cutBody(64<<10, 4<<10), broken},
		{"no place left, a body over the limit", 128, sizedBody(64<<10 + 1), large},
		{"no place left, a small body", 128, sizedBody(4 << 10), missing},
		{"no place left, small chunks", 128, chunkedBody(4 << 10), missing},
	} {
		for range row.held {
			s.largeBodies <- struct{}{}
		}
		conn := live.dial(t).(*net.TCPConn)
		go func() {
			io.WriteString(conn, row.request)
			conn.CloseWrite()
		}()
		got, header := readAnswer(bufio.NewReader(conn))
		if !strings.HasPrefix(got, row.want) || (header.Get("Retry-After") == "1") != (row.want == busy) {
			t.Errorf("%s: got %s and Retry-After: %q, want %s", row.name, got, header.Get("Retry-After"), row.want)
		}
		if held := len(s.largeBodies); held != row.held {
			t.Errorf("%s: got %d places taken afterwards, want %d", row.name, held, row.held)
		}
		for range row.held {
			<-s.largeBodies
		}
	}
}

// TestUnreadBodies looks at who closes the connection: whoever has not read all of a body, and does not wait for it.
func TestUnreadBodies(t *testing.T) {
	const unknown, missing = `404 {"detail":"Not Found"}`, `422 {"detail":[{"type":"missing"`
	stalled := replaceOnce(refreshHeader, "/auth/refresh", "/nope") + "\r\n{"
	chunks := "Transfer-Encoding: chunked"
	synctest.Test(t, func(t *testing.T) {
		listener := newPipeListener()
		startServing(t, partsServer(t), listener, defaultTimeouts)
		for _, row := range []struct{ name, request, want, connection string }{
			{"no body", askHealth, healthy, ""},
			{"a body of no length", replaceOnce(refreshHeader, "20", "0") + "\r\n", missing, ""},
			{"a body", replaceOnce(refreshHeader, "20", "2") + "\r\n{}", missing, ""},
			{"the largest body", replaceOnce(refreshHeader, "20", "65536") + "\r\n{}" + strings.Repeat(" ", 65534), missing, ""},
			{"a body in chunks", replaceOnce(refreshHeader, "Content-Length: 20", chunks) + "\r\n2\r\n{}\r\n0\r\n\r\n", missing, "close"},
			{"a body of HTTP/1.0", replaceOnce(replaceOnce(refreshHeader, "20", "2"), "1.1", "1.0") + "Connection: keep-alive\r\n\r\n{}", missing, "close"},
			{"no body of HTTP/1.0", "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", healthy, "keep-alive"},
			{"a body that stalls at a path that is not there", stalled, unknown, "close"},
			{"chunks that stall there", replaceOnce(stalled, "Content-Length: 20", chunks), unknown, "close"},
			{"a body that is not sent there unless it is asked for", replaceOnce(stalled, "\r\n\r\n{", "\r\nExpect: 100-continue\r\n\r\n"), unknown, "close"},
			{"a body that stalls at an unclean path", replaceOnce(stalled, "/nope", "//nope"), unknown, "close"},
			{"a body that stalls with another method", replaceOnce(stalled, "POST /nope", "PUT /me"), `405 {"detail":"Method Not Allowed"}`, "close"},
			{"a body that stalls without credentials", replaceOnce(stalled, "POST /nope", "GET /me"), `401 {"detail":"Not authenticated"}`, "close"},
			{"a body that stalls where nobody reads one", replaceOnce(stalled, "POST /nope", "GET /healthz"), healthy, "close"},
			{"a body that comes where nobody reads one", replaceOnce(askHealth, "\r\n\r\n", "\r\nContent-Length: 2\r\n\r\n{}"), healthy, "close"},
			{"a body over the limit that stalls", replaceOnce(refreshHeader, "20", "65537") + "\r\n{", `413 {"detail":"Content Too Large"}`, "close"},
		} {
			conn := listener.dial(t)
			start := time.Now()
			go io.WriteString(conn, row.request)
			got, header := readAnswer(bufio.NewReader(conn))
			if !strings.HasPrefix(got, row.want) || header.Get("Connection") != row.connection || time.Since(start) > 0 {
				t.Errorf("%s: got %s and Connection: %q after %v, want %s and %q at once", row.name, got, header.Get("Connection"), time.Since(start), row.want, row.connection)
			}
		}
	})
}

// TestLateBody sends the body of a login when the time for that is nearly over. The wait for a slot is no part of it.
func TestLateBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := partsServer(t)
		s.passwords = fullPasswords(1, 0)
		listener := newPipeListener()
		startServing(t, s, listener, defaultTimeouts)
		conn := listener.dial(t)
		header, form, _ := strings.Cut(askLogin, "\r\n\r\n")
		io.WriteString(conn, header+"\r\n\r\n")
		<-time.After(9 * time.Second)
		io.WriteString(conn, form)
		time.AfterFunc(4*time.Second, func() { <-s.passwords.slots })
		if got, _ := readAnswer(bufio.NewReader(conn)); !strings.HasPrefix(got, `200 {"access_token":"`) {
			t.Errorf("got %s, want 200", got)
		}
	})
}

// TestUnreadAnswer has a client begin to read its answer a second before and after the time for that.
func TestUnreadAnswer(t *testing.T) {
	for after, want := range map[time.Duration]string{29 * time.Second: healthy, 31 * time.Second: "unexpected EOF"} {
		synctest.Test(t, func(t *testing.T) {
			listener := newPipeListener()
			startServing(t, partsServer(t), listener, defaultTimeouts)
			conn := listener.dial(t)
			io.WriteString(conn, askHealth)
			<-time.After(after)
			if got, _ := readAnswer(bufio.NewReader(conn)); got != want {
				t.Errorf("%v: got %s, want %s", after, got, want)
			}
		})
	}
}

// A goneWriter is an answer to a client that is gone.
type goneWriter struct {
	httptest.ResponseRecorder
	writes int
}

func (w *goneWriter) Write([]byte) (int, error) {
	w.writes++
	return 0, net.ErrClosed
}

// TestListStops counts how often the list is written to a client that is gone.
func TestListStops(t *testing.T) {
	s := partsServer(t)
	for n := range 3 * usersPage {
		s.users.add(user{id: fmt.Sprint(n), email: fmt.Sprint(n, "@example.com")})
	}
	w := &goneWriter{}
	s.writeUsers(w, 0, s.users.count())
	if w.writes != 1 {
		t.Errorf("got %d writes, want 1", w.writes)
	}
}

// TestListEnds writes users between two places, of which there are more than those on both sides.
func TestListEnds(t *testing.T) {
	s := partsServer(t)
	for n := range 3 * usersPage {
		s.users.add(user{id: fmt.Sprint(n), email: fmt.Sprint(n, "@example.com")})
	}
	for _, row := range []struct{ from, end int }{
		{0, 0}, {0, 1}, {0, usersPage}, {0, usersPage + 1}, {1, usersPage}, {usersPage - 1, 2*usersPage + 1}, {usersPage, usersPage},
	} {
		w := httptest.NewRecorder()
		s.writeUsers(w, row.from, row.end)
		var got []struct{ ID string }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got) != row.end-row.from {
			t.Errorf("%d to %d: got %d users and %v, want %d", row.from, row.end, len(got), err, row.end-row.from)
			continue
		}
		for i, u := range got {
			if want := s.users.inOrder[row.from+i].id; u.ID != want {
				t.Errorf("%d to %d: got %s in place %d, want %s", row.from, row.end, u.ID, i, want)
			}
		}
	}
}

// A shutdownRow is a login that waits for its turn to hash when the service is to end.
type shutdownRow struct {
	name            string
	slot, took      time.Duration
	shutdown        time.Duration // 0 for the default
	answer, logged  string
	clientGoesFirst bool
}

var shutdownRows = []shutdownRow{
	{"it gets its turn", 3 * time.Second, 3 * time.Second, 0, `200 {"access_token":"`, "status=200", false},
	{"it waits too long", 0, 5 * time.Second, 0, `503 {"detail":"busy, try again"}`, `level=ERROR msg="login refused" address_hash=`, false},
	{"there is no time left for it", 0, time.Second, time.Second, "unexpected EOF", `msg="requests cut off" reason="context deadline exceeded"`, false},
	{"its client goes", 0, 0, 0, "io: read/write on closed pipe", "msg=request method=POST route=\"POST /auth/login\" status=503", true},
}

// TestShutdown ends the service while a login waits for a slot. The slot is given back after some time, if ever.
func TestShutdown(t *testing.T) {
	for _, row := range shutdownRows {
		synctest.Test(t, row.test)
	}
}

func (row shutdownRow) test(t *testing.T) {
	s := partsServer(t)
	var log lockedBuffer
	s.log = newLogger("text", &log)
	s.passwords = fullPasswords(1, 0)
	limits := defaultTimeouts
	if row.shutdown > 0 {
		limits.shutdown = row.shutdown
	}
	listener := newPipeListener()
	live := startServing(t, s, listener, limits)
	idle, conn := listener.dial(t), listener.dial(t)
	if got := ask(idle, askHealth); got != healthy {
		t.Errorf("%s: got %s, want %s", row.name, got, healthy)
	}
	io.WriteString(conn, askLogin)
	synctest.Wait()
	start := time.Now()
	live.cancel()
	synctest.Wait()
	if listener.dial(t) != nil {
		t.Errorf("%s: got a new connection, want none", row.name)
	}
	if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%s: a connection without a request: got %v, want it closed", row.name, err)
	}
	if row.clientGoesFirst {
		conn.Close()
	}
	if row.slot > 0 {
		time.AfterFunc(row.slot, func() { <-s.passwords.slots })
	}
	if got, _ := readAnswer(bufio.NewReader(conn)); !strings.HasPrefix(got, row.answer) {
		t.Errorf("%s: got %s, want %s", row.name, got, row.answer)
	}
	<-live.ended
	if took := time.Since(start); took < row.took || took > row.took+time.Second {
		t.Errorf("%s: got the end after %v, want %v", row.name, took, row.took)
	}
	synctest.Wait()
	if !strings.Contains(log.String(), row.logged) {
		t.Errorf("%s: got the log %s, want %s in it", row.name, log.String(), row.logged)
	}
}

// notRequests are answered by net/http itself.
var notRequests = []struct {
	name, request string
	status        int
}{
	{"a word", "hello\r\n\r\n", 400},
	{"an empty method", " / HTTP/1.1\r\n\r\n", 400},
	{"no Host", "GET /healthz HTTP/1.1\r\n\r\n", 400},
	{"two Hosts", "GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
	{"a Host that is none", "GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
	{"a space in a header's name", "GET /healthz HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n", 400},
	{"a control character in a header", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: \x01\r\n\r\n", 400},
	{"a path that is none", "GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"two different lengths", "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
	{"a negative length", "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
	{"a header of more than 16 KiB", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 17<<10) + "\r\n\r\n", 431},
	{"an Expect that nobody knows", "GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: 42\r\n\r\n", 417},
	{"a Transfer-Encoding that nobody knows", "POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
	{"two Transfer-Encodings", "POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501},
	{"HTTP/2", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
	{"HTTP/3", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505},
}

// TestNotRequests wants them answered like all others, and logged.
func TestNotRequests(t *testing.T) {
	s := partsServer(t)
	var log lockedBuffer
	s.log = newLogger("text", &log)
	live := serveTCP(t, s, defaultTimeouts)
	var logged []string
	for _, row := range notRequests {
		conn := live.dial(t)
		go io.WriteString(conn, row.request)
		reader := bufio.NewReader(conn)
		got, header := readAnswer(reader)
		if want := fmt.Sprintf(`%d {"detail":"%s"}`, row.status, http.StatusText(row.status)); got != want {
			t.Errorf("%s: got %s, want %s", row.name, got, want)
		}
		if header == nil {
			continue
		}
		id := header.Get("X-Request-Id")
		header.Del("X-Request-Id")
		header.Del("Content-Length")
		header.Del("Date")
		want := http.Header{"Cache-Control": {"no-store"}, "Connection": {"close"}, "Content-Type": {"application/json"}, "X-Content-Type-Options": {"nosniff"}}
		if fmt.Sprint(header) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", row.name, header, want)
		}
		if rest, err := io.ReadAll(reader); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: got %q after the answer and %v, want the end", row.name, rest, err)
		}
		logged = append(logged, fmt.Sprintf("level=INFO msg=\"not a request\" status=%d client=127.0.0.1 request_id=%s\n", row.status, id))
	}
	live.cancel()
	<-live.ended
	for _, want := range logged {
		if !strings.Contains(log.String(), want) {
			t.Errorf("got the log %s, want %q in it", log.String(), want)
		}
	}
}

// TestRequestsOnOneConnection counts the answers to what is sent at once, to tell where the connection ends.
func TestRequestsOnOneConnection(t *testing.T) {
	const refreshed, unread = `422 {"detail":[{"type":"missing"`, `404 {"detail":"Not Found"}`
	chunked := replaceOnce(refreshHeader, "Content-Length: 20", "Transfer-Encoding: chunked") + "\r\n2\r\n{}\r\n0\r\n\r\n"
	live := serveTCP(t, partsServer(t), defaultTimeouts)
	for _, row := range []struct {
		name, requests string
		want           []string
	}{
		{"two requests", askHealth + askHealth, []string{healthy, healthy}},
		{"a body and a request", replaceOnce(refreshHeader, "20", "2") + "\r\n{}" + askHealth, []string{refreshed, healthy}},
		{"a path that is not there and a request", replaceOnce(askHealth, "/healthz", "/nope") + askHealth, []string{unread, healthy}},
		{"a question that is about no path", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + askHealth, []string{unread, healthy}},
		{"a URL without a path", "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n" + askHealth, []string{unread, healthy}},
		{"a tunnel", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + askHealth, []string{unread, healthy}},
		{"a chunked body and a request", chunked + askHealth, []string{refreshed}},
		{"both lengths and a request", replaceOnce(chunked, "Transfer", "Content-Length: 2\r\nTransfer") + askHealth, []string{refreshed}},
		{"both lengths, the other first", replaceOnce(chunked, "chunked\r\n", "chunked\r\nContent-Length: 12\r\n") + askHealth, []string{refreshed}},
		{"both lengths at a path that is not there", replaceOnce(replaceOnce(chunked, "/auth/refresh", "/nope"), "chunked\r\n", "chunked\r\nContent-Length: 12\r\n") + askHealth, []string{unread}},
		{"a body over the limit", replaceOnce(refreshHeader, "20", "65537") + "\r\n" + strings.Repeat(" ", 65537) + askHealth, []string{`413 {"detail":"Content Too Large"}`}},
		{"a chunked body over the limit", replaceOnce(refreshHeader, "Content-Length: 20", "Transfer-Encoding: chunked") + "\r\n10001\r\n" + strings.Repeat(" ", 65537) + "\r\n0\r\n\r\n" + askHealth, []string{`413 {"detail":"Content Too Large"}`}},
		{"a body of the limit", replaceOnce(refreshHeader, "20", "65536") + "\r\n{}" + strings.Repeat(" ", 65534) + askHealth, []string{refreshed, healthy}},
		{"a header of 16 KiB", replaceOnce(askHealth, "\r\n\r\n", "\r\nX: "+strings.Repeat("x", 16<<10-len(askHealth)-5)+"\r\n\r\n"), []string{healthy}},
	} {
		conn := live.dial(t).(*net.TCPConn)
		go func() {
			io.WriteString(conn, row.requests)
			conn.CloseWrite()
		}()
		reader := bufio.NewReader(conn)
		var got []string
		ids := map[string]bool{}
		for {
			answer, header := readAnswer(reader)
			if header == nil {
				break
			}
			got = append(got, answer)
			ids[header.Get("X-Request-Id")] = true
		}
		same := len(got) == len(row.want) && len(ids) == len(got)
		for i := range got {
			same = same && strings.HasPrefix(got[i], row.want[i])
		}
		if !same {
			t.Errorf("%s: got %q with %d ids, want %q", row.name, got, len(ids), row.want)
		}
	}
}

// TestBodyBreaksOff ends a body before its length, which half-closes the connection: the client still reads.
func TestBodyBreaksOff(t *testing.T) {
	live := serveTCP(t, partsServer(t), defaultTimeouts)
	for _, row := range []struct{ name, request string }{
		{"a body that is too short", refreshHeader + "\r\n{"},
		{"a chunk that is too short", replaceOnce(refreshHeader, "Content-Length: 20", "Transfer-Encoding: chunked") + "\r\n5\r\n{"},
		{"a chunk that is none", replaceOnce(refreshHeader, "Content-Length: 20", "Transfer-Encoding: chunked") + "\r\nx\r\n{"},
	} {
		conn := live.dial(t).(*net.TCPConn)
		io.WriteString(conn, row.request)
		conn.CloseWrite()
		got, _ := readAnswer(bufio.NewReader(conn))
		if want := `400 {"detail":"There was an error parsing the body"}`; got != want {
			t.Errorf("%s: got %s, want %s", row.name, got, want)
		}
	}
	if got := ask(live.dial(t), askHealth); got != healthy {
		t.Errorf("another client: got %s, want %s", got, healthy)
	}
}

// TestFailedLogins looks at what is logged of each: what is for the owner of the service to mend is an error. A stored
// hash that is none is no fault of who logs in.
func TestFailedLogins(t *testing.T) {
	for _, row := range []struct {
		name    string
		prepare func(s *server)
		want    string
		logged  string // level, event and reason
	}{
		{"a wrong password", func(s *server) { s.users.update("u1", func(u *user) { u.hash = s.passwords.hash("secret124") }) },
			`401 {"detail":"incorrect email or password"}`, `INFO "login refused" reason="wrong password"`},
		{"an unknown address", func(s *server) { s.users = newUsers() },
			`401 {"detail":"incorrect email or password"}`, `INFO "login refused" reason="unknown address"`},
		{"too many failures", func(s *server) { loginErrors(t, s, 10, "user@example.com", "secret124") },
			`429 {"detail":"too many attempts"}`, `INFO "login refused" reason=throttled`},
		{"hashing is full", func(s *server) { s.passwords = fullPasswords(1, 64) },
			`503 {"detail":"busy, try again"}`, `ERROR "login refused" reason="hashing is full"`},
		{"a stored hash that is none", func(s *server) { s.users.update("u1", func(u *user) { u.hash = newSecret("none") }) },
			`500 {"detail":"Internal Server Error"}`, `ERROR "request failed" reason="password hash: not an argon2id hash of version 19"`},
	} {
		s := partsServer(t)
		row.prepare(s)
		var log lockedBuffer
		s.log = newLogger("text", &log)
		r := httptest.NewRequest("POST", "/auth/login", strings.NewReader(loginForm))
		r.RemoteAddr = "127.0.0.1:1234"
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		if got := fmt.Sprint(w.Code, " ", w.Body.String()); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
		level, _, _ := strings.Cut(row.logged, " ")
		lines := regexp.MustCompile(` level=(\w+) msg=("[^"]*")(?: address_hash=\w{16})?( reason=.*) request_id=\w+\n.* level=(\w+) msg=request method=POST `).FindStringSubmatch(log.String())
		if lines == nil || lines[1]+" "+lines[2]+lines[3] != row.logged || lines[4] != level || strings.Count(log.String(), "\n") != 2 {
			t.Errorf("%s: got the log %s, want %s, and the request at the same level", row.name, log.String(), row.logged)
		}
	}
}

func TestLevelOf(t *testing.T) {
	for status, want := range map[int]slog.Level{0: slog.LevelInfo, 200: slog.LevelInfo, 429: slog.LevelInfo, 499: slog.LevelInfo, 500: slog.LevelError, 503: slog.LevelError} {
		if got := levelOf(status); got != want {
			t.Errorf("%d: got %v, want %v", status, got, want)
		}
	}
}

func TestKnownMethod(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"} {
		if got := knownMethod(method); got != method {
			t.Errorf("%s: got %s, want it as it is", method, got)
		}
	}
	for _, method := range []string{"", "get", "Post", "GETS", "SEARCH", "Sup3rS3cret"} {
		if got := knownMethod(method); got != "unknown" {
			t.Errorf("%s: got %s, want unknown", method, got)
		}
	}
}

// TestParameterGivenOften wants one fault of a parameter, however often it is given, and no name that nobody asks for.
func TestParameterGivenOften(t *testing.T) {
	const twice = `,"msg":"Parameter given twice"}`
	known := func(name string) string { return `{"type":"value_error","loc":["body","` + name + `"]` + twice }
	unknown := `{"type":"value_error","loc":["body"]` + twice
	for _, row := range []struct{ name, form, want string }{
		{"twice", loginForm + "&password=x", known("password")},
		{"a thousand times", loginForm + strings.Repeat("&password=x", 1000), known("password")},
		{"a thousand times without a value", loginForm + strings.Repeat("&password=", 1000), known("password")},
		{"what is not UTF-8", "username=x" + strings.Repeat("&password=%ff", 1000), known("password")},
		{"what is not UTF-8 the second time", loginForm + strings.Repeat("&password=%ff", 1000), known("password")},
		{"one name spelled in two ways", loginForm + "&p%61ssword=x", known("password")},
		{"two parameters in turn", strings.Repeat("password=x&username=y&", 1000), known("password") + "," + known("username")},
		{"a name that nobody asks for", loginForm + strings.Repeat("&hunter2=x", 1000), unknown},
		{"two names that nobody asks for", loginForm + strings.Repeat("&hunter2=x&hunter3=y", 1000), unknown + "," + unknown},
		{"a name in another letter case", loginForm + strings.Repeat("&Password=x", 1000), unknown},
		{"no name", loginForm + strings.Repeat("&=hunter2", 1000), unknown},
	} {
		r := httptest.NewRequest("POST", "/auth/login", strings.NewReader(row.form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		partsServer(t).handler().ServeHTTP(w, r)
		if want := `{"detail":[` + row.want + `]}`; w.Code != 422 || w.Body.String() != want {
			t.Errorf("%s: got %d %.300s, want 422 %s", row.name, w.Code, w.Body.String(), want)
		}
	}
}

// A panicRow is a handler that panics, with its answer and what the log has of it.
type panicRow struct {
	name    string
	handler http.HandlerFunc
	want    string
	logged  []string
}

var panicRows = []panicRow{
	{"before the answer", func(http.ResponseWriter, *http.Request) { panic("oops\nlevel=INFO") }, `500 {"detail":"Internal Server Error"}`,
		[]string{`level=ERROR msg=panic request_id=`, ` panic="oops\nlevel=INFO" stack="goroutine `, "auth_test.go:", "level=ERROR msg=request method=GET route=/panic status=500 bytes=34 "}},
	{"a nil pointer", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte((*user)(nil).id)) }, `500 {"detail":"Internal Server Error"}`,
		[]string{`panic="runtime error: invalid memory address or nil pointer dereference"`, "status=500"}},
	{"after a header", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2")
		panic("oops")
	}, `500 {"detail":"Internal Server Error"}`, []string{"level=ERROR msg=panic"}},
	{"after the answer began", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		panic("oops")
	}, "unexpected EOF", []string{"level=ERROR msg=panic", " panic=oops stack=", " status=200 "}},
	{"in what was written, unsent", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("half"))
		panic("oops")
	}, "unexpected EOF", []string{"level=ERROR msg=panic", " status=200 bytes=4 "}},
	{"on purpose", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "unexpected EOF", []string{"level=INFO msg=request"}},
}

// TestPanic has handlers panic before and after the answer has begun. The service goes on.
func TestPanic(t *testing.T) {
	for _, row := range panicRows {
		row.test(t)
	}
}

func (row panicRow) test(t *testing.T) {
	s := partsServer(t)
	var log lockedBuffer
	s.log = newLogger("text", &log)
	mux := http.NewServeMux()
	mux.Handle("/panic", s.observe(row.handler))
	mux.Handle("/", s.handler())
	live := httptest.NewServer(mux)
	for _, request := range []struct{ text, want string }{
		{"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n", row.want},
		{askHealth, healthy},
	} {
		conn, err := net.Dial("tcp", live.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(conn, request.text); got != request.want {
			t.Errorf("%s: got %s, want %s", row.name, got, request.want)
		}
		conn.Close()
	}
	live.Close()
	text := log.String()
	for _, want := range row.logged {
		if !strings.Contains(text, want) {
			t.Errorf("%s: got the log %s, want %s in it", row.name, text, want)
		}
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("%s: got the line %s, want each to begin with its time", row.name, line)
		}
	}
}

// asProgram is set in the environment of the test binary where that is to be the program itself.
const asProgram = "JWT_AUTH_API_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	m.Run()
}

// startProgram runs the program as a process of its own, and reads its log up to where it listens.
func startProgram(t *testing.T, environ ...string) (program *exec.Cmd, log *bufio.Reader, addr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program = exec.CommandContext(t.Context(), self)
	program.Dir = t.TempDir()
	program.Env = append([]string{asProgram + "=1", "APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_EMAIL=", "APP_ADDR=127.0.0.1:0"}, environ...)
	stderr, err := program.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	log = bufio.NewReader(stderr)
	line, err := log.ReadString('\n')
	if _, addr, ok := strings.Cut(strings.TrimSpace(line), "msg=listening addr="); ok {
		return program, log, addr
	}
	t.Fatalf("got the log %s and %v, want where it listens", line, err)
	return nil, nil, ""
}

// TestSignals sends signals to the program: the first ends it when it has answered, the second at once.
func TestSignals(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		program, log, addr := startProgram(t)
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(conn, askHealth); got != healthy {
			t.Errorf("%v: got %s, want %s", signal, got, healthy)
		}
		program.Process.Signal(signal)
		rest, _ := io.ReadAll(log)
		if err := program.Wait(); err != nil || !strings.Contains(string(rest), `msg="shutting down"`) {
			t.Errorf("%v: got %v and the log %s, want the exit status 0", signal, err, rest)
		}
	}
}

// TestSecondSignal leaves a request in flight, for which the program would wait ten seconds.
func TestSecondSignal(t *testing.T) {
	program, log, addr := startProgram(t)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, replaceOnce(refreshHeader, "Content", "Expect: 100-continue\r\nContent")+"\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q and %v, want to be told to go on", line, err)
	}
	program.Process.Signal(syscall.SIGTERM)
	if line, err := log.ReadString('\n'); err != nil || !strings.Contains(line, `msg="shutting down"`) {
		t.Fatalf("got %s and %v, want it to shut down", line, err)
	}
	// A signal that comes before the first is dealt with is a part of it, so that this one is sent until it is heard.
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- program.Wait() }()
	for tick, running := time.Tick(time.Millisecond), true; running; {
		program.Process.Signal(syscall.SIGTERM)
		select {
		case err = <-ended:
			running = false
		case <-tick:
		}
	}
	status, _ := program.ProcessState.Sys().(syscall.WaitStatus)
	if took := time.Since(start); !status.Signaled() || status.Signal() != syscall.SIGTERM || took > 5*time.Second {
		t.Errorf("got %v after %v, want the end at once, by the signal", err, took)
	}
}

func TestRunRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	good := []string{"APP_JWT_SECRET=" + partsSecret, "APP_ADDR=127.0.0.1:0"}
	for _, row := range []struct {
		name          string
		args, environ []string
		dotenv, want  string
	}{
		{"an argument", []string{"-port=80"}, good, "", "no arguments are taken: settings are environment variables, see README.md"},
		{"no secret", nil, nil, "", "APP_JWT_SECRET: missing; make one with: openssl rand -hex 32"},
		{"a port that is taken", nil, append(good, "APP_ADDR="+addr), "", "APP_ADDR: listen tcp " + addr + ": bind: address already in use"},
		{"a slip of the pen", nil, good, "APP_SECRET=hunter2", `.env line 1: APP_SECRET is not a setting; did you mean APP_JWT_SECRET?`},
		{"a port that .env sets and is taken", nil, good[:1], "APP_ADDR=" + addr, "APP_ADDR: listen tcp " + addr + ": bind: address already in use"},
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile(".env", []byte(row.dotenv), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		if got := errText(run(t.Context(), row.args, row.environ, &log)); got != row.want || log.Len() > 0 {
			t.Errorf("%s: got %s and the log %q, want %s and none", row.name, got, log.String(), row.want)
		}
	}
	t.Chdir(t.TempDir())
	if err := os.Mkdir(".env", 0o700); err != nil {
		t.Fatal(err)
	}
	const unread = ".env: can't read the file: is a directory"
	if got := errText(run(t.Context(), nil, good, io.Discard)); got != unread {
		t.Errorf("a directory .env: got %s, want %s", got, unread)
	}
	if got, want := errText(run(t.Context(), nil, []string{"APP_LOG=x"}, io.Discard)), unread+"\nAPP_JWT_SECRET: missing; make one with: openssl rand -hex 32\nAPP_LOG: want text or json"; got != want {
		t.Errorf("a directory .env and other faults: got %s, want %s", got, want)
	}
}

// longSeed, in bytes, is what is too long for a seed: the fuzzer would spend its time on making it shorter.
const longSeed = 256

// FuzzTokenVerify signs whatever it is given. A token that the codec takes is spelled in the one way in which its
// contents encode, and what encoding/json reads in its claims is what we read.
func FuzzTokenVerify(f *testing.F) {
	f.Add(b64(plainHeader)+"."+b64(plainClaims), plainClaims)
	for _, row := range badSegments {
		f.Add(row.input, plainClaims)
	}
	for _, row := range badHeaders {
		f.Add(b64(row.header)+"."+b64(plainClaims), plainClaims)
	}
	for _, row := range badJSON {
		if len(row.text) < longSeed {
			f.Add(b64(plainHeader)+".", row.text)
		}
	}
	key := newHMACKey([]byte(partsSecret))
	tokens := tokensAt(time.Unix(1500, 0), partsSecret)
	f.Fuzz(func(t *testing.T, input, payload string) {
		for _, token := range []string{input, signed(partsSecret, input)} {
			if payload, err := key.open(token); err == nil {
				checkOpened(t, token, payload)
			}
			tokens.verify(token, accessToken)
		}
		token := forge(plainHeader, payload)
		got, err := key.open(token)
		if len(token) <= 4096 && (err != nil || got != payload) {
			t.Fatalf("got %q and %v, want the payload %q", got, err, payload)
		}
		if c, err := parseClaims(payload); err == nil {
			checkClaims(t, c, payload)
		}
	})
}

// checkOpened checks a token that the codec has taken.
func checkOpened(t *testing.T, token, payload string) {
	t.Helper()
	segments := strings.Split(token, ".")
	if len(segments) != 3 {
		t.Fatalf("got %d segments accepted in %q, want 3", len(segments), token)
	}
	header, err := base64.RawURLEncoding.DecodeString(segments[0])
	if err != nil || b64(string(header)) != segments[0] {
		t.Errorf("got the header %q accepted, want the spelling %q", segments[0], b64(string(header)))
	}
	if b64(payload) != segments[1] {
		t.Errorf("got the payload %q accepted, want the spelling %q", segments[1], b64(payload))
	}
	if want := signed(partsSecret, segments[0]+"."+segments[1]); token != want {
		t.Errorf("got %q accepted, want the signature of %q", token, want)
	}
	var parameters map[string]any
	if err := json.Unmarshal(header, &parameters); err != nil || parameters["alg"] != "HS256" {
		t.Errorf("got the header %s accepted, want one that says HS256 (%v)", header, err)
	}
}

// checkClaims holds claims against encoding/json, and writes and reads them again.
func checkClaims(t *testing.T, c claims, payload string) {
	t.Helper()
	var want map[string]any
	if err := json.Unmarshal([]byte(payload), &want); err != nil {
		t.Fatalf("got %s accepted, want %v", payload, err)
	}
	for name, got := range map[string]string{"sub": c.subject, "type": c.typ, "iss": c.issuer, "jti": c.id} {
		if text, isString := want[name].(string); got != text || want[name] != nil && !isString {
			t.Errorf("%s: got %q, want %v", name, got, want[name])
		}
	}
	for name, got := range map[string]float64{"exp": c.expiry, "iat": c.issuedAt, "nbf": c.notBefore} {
		if number, isNumber := want[name].(float64); got != number || want[name] != nil && !isNumber {
			t.Errorf("%s: got %v, want %v", name, got, want[name])
		}
	}
	again, err := parseClaims(string(c.appendJSON(nil)))
	if err != nil || again.subject != c.subject || again.typ != c.typ || again.issuer != c.issuer || !slices.Equal(again.scopes, c.scopes) {
		t.Errorf("written and read again: got %+v and %v, want %+v", again, err, c)
	}
}

// FuzzPHC looks at what a hash string may ask for: nothing of it is computed here.
func FuzzPHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=3,p=4$AAECAwQFBgcICQoLDA0ODw$hTsnKkTbFCHAKWJmmlXrCZTzyrOF7RxMeSU+7hm6tJ4")
	for _, row := range phcBounds {
		f.Add(phcPrefix + row.encoded)
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		h, err := parsePHC(encoded)
		if err != nil {
			return
		}
		m, time, p := h.params.memory, h.params.time, uint32(h.params.threads)
		if p < 1 || p > 16 || time < 1 || time > 10 || m < 8*p || m > 256<<10 {
			t.Errorf("got the parameters %s accepted, want them within the bounds", h.params)
		}
		if len(h.salt) < 8 || len(h.salt) > 64 || len(h.hash) < 16 || len(h.hash) > 64 {
			t.Errorf("got a salt of %d bytes and a hash of %d, want 8 to 64 and 16 to 64", len(h.salt), len(h.hash))
		}
		if h.String() != encoded {
			t.Errorf("got %q accepted, want the spelling %q", encoded, h)
		}
	})
}

// twiceNamed reports whether some object of a JSON text has two equal names, as far as encoding/json can tell.
func twiceNamed(text string) bool {
	decoder := json.NewDecoder(strings.NewReader(text))
	type level struct {
		names  map[string]bool // nil in a list
		isName bool
	}
	levels := []*level{{}}
	for {
		token, err := decoder.Token()
		if err != nil {
			return false
		}
		top := levels[len(levels)-1]
		name, isString := token.(string)
		if top.names != nil && top.isName && isString {
			if top.names[name] {
				return true
			}
			top.names[name] = true
		}
		top.isName = !top.isName
		switch token {
		case json.Delim('{'):
			levels = append(levels, &level{names: map[string]bool{}, isName: true})
		case json.Delim('['):
			levels = append(levels, &level{})
		case json.Delim('}'), json.Delim(']'):
			levels = levels[:len(levels)-1]
			levels[len(levels)-1].isName = true
		}
	}
}

// extraRefusals are what encoding/json lets through, and how to tell that it is there.
var extraRefusals = map[string]func(text string) bool{
	"Property name given twice": twiceNamed,
	"Too many levels":           func(text string) bool { return strings.Count(text, "[")+strings.Count(text, "{") > 1000 },
	"Invalid UTF-8":             func(text string) bool { return !utf8.ValidString(text) },
	"Lone surrogate escape":     regexp.MustCompile(`\\u[dD][89a-fA-F][0-9a-fA-F]{2}`).MatchString,
}

// FuzzReadJSON holds the reader against encoding/json: it takes what that takes, but for extraRefusals.
func FuzzReadJSON(f *testing.F) {
	for _, row := range badJSON {
		if len(row.text) < longSeed {
			f.Add(row.text)
		}
	}
	for _, row := range goodJSON {
		if len(row.text) < longSeed {
			f.Add(row.text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := map[string]jsonValue{}
		err := readObject(text, func(name string, v jsonValue) error {
			got[name] = v
			return nil
		})
		var refused *jsonError
		if errors.As(err, &refused) {
			extra := extraRefusals[refused.msg]
			if json.Valid([]byte(text)) && (extra == nil || !extra(text)) {
				t.Errorf("%q: got %v, want it accepted", text, err)
			}
			if refused.pos < 0 || refused.pos > utf8.RuneCountInString(text) {
				t.Errorf("%q: got the position %d, want one in the text", text, refused.pos)
			}
			return
		}
		if !json.Valid([]byte(text)) || twiceNamed(text) {
			t.Errorf("%q: got it accepted, want an error", text)
		}
		if err == nil {
			checkMembers(t, got, text)
		}
	})
}

// checkMembers holds what was read of an object against encoding/json.
func checkMembers(t *testing.T, got map[string]jsonValue, text string) {
	t.Helper()
	var want map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatalf("%q: got it accepted, want %v", text, err)
	}
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("%q: got the names %q, want %q", text, g, w)
	}
	for name, v := range got {
		raw := string(want[name])
		if v.kind == jsonString {
			json.Unmarshal(want[name], &raw)
		}
		if v.text != raw {
			t.Errorf("%q: %q: got %q, want %q", text, name, v.text, raw)
		}
	}
}

// FuzzAddress looks at what an address that is taken can't have, and has net/mail read those in ASCII.
func FuzzAddress(f *testing.F) {
	for _, row := range badAddresses {
		f.Add(row.text)
	}
	for _, row := range goodAddresses {
		f.Add(row.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseAddress(text)
		if err != nil {
			if got != "" || err.Error() == "" {
				t.Errorf("%q: got %q beside the error %q, want a reason alone", text, got, err)
			}
			return
		}
		if again, err := parseAddress(got); again != got || err != nil {
			t.Errorf("%q: got %q of the result %q (%v), want the same", text, again, got, err)
		}
		local, domain, _ := strings.Cut(got, "@")
		if !strings.HasPrefix(text, local+"@") || strings.Map(lowerRune, domain) != domain || len(got) > 254 || len(local) > 64 {
			t.Errorf("%q: got %q, want the local part as given, the domain in lower case, and not too long", text, got)
		}
		if i := strings.IndexFunc(local+domain, badRune); i >= 0 || !utf8.ValidString(got) {
			t.Errorf("%q: got %q accepted, want no such character as at %d", text, got, i)
		}
		if key := addressKey(got); addressKey(key) != key {
			t.Errorf("%q: got the key %q, and %q of that, want one", text, key, addressKey(key))
		}
		if strings.IndexFunc(got, func(r rune) bool { return r > unicode.MaxASCII }) >= 0 {
			return
		}
		if parsed, err := mail.ParseAddress(got); err != nil || parsed.Address != got || parsed.Name != "" {
			t.Errorf("%q: net/mail: got %v and %v, want %s", text, parsed, err, got)
		}
	})
}

// badRune reports whether an address can't have the rune outside of quotes, or nobody would see it.
func badRune(r rune) bool {
	return strings.ContainsRune("\"(),:;<>@[\\]\uFFFD", r) ||
		unicode.IsSpace(r) || unicode.In(r, unicode.C, unicode.Z, unicode.Other_Default_Ignorable_Code_Point)
}

// TestHTTP10WithBothLengths asks to keep a connection that RFC 9112 6.1 has closed.
func TestHTTP10WithBothLengths(t *testing.T) {
	live := serveTCP(t, partsServer(t), defaultTimeouts)
	conn := live.dial(t)
	go io.WriteString(conn, "POST /auth/refresh HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"+
		"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}"+askHealth)
	reader := bufio.NewReader(conn)
	readAnswer(reader)
	if got, header := readAnswer(reader); header != nil {
		t.Errorf("got a second answer, %s, want the end", got)
	}
}

// FuzzForm reads a body as a form of either kind. Where net/url takes it too, the two agree.
func FuzzForm(f *testing.F) {
	for _, body := range []string{"username=a%40b.co&password=100%", "a=1&a=2", "=&&;=%zz&+=%2B", "grant_type=&scope=%ff",
		"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n"} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		in := newInput("body")
		in.addURLEncoded(body)
		want, err := url.ParseQuery(body)
		for name, v := range in.values {
			switch {
			case (v.kind == jsonString) != utf8.ValidString(v.text) && v.kind != givenTwice:
				t.Errorf("%q: got %v, want text if and only if it is UTF-8", body, v)
			case err == nil && (v.kind == givenTwice) != (len(want[name]) > 1):
				t.Errorf("%q: %q: got %v, want it %d times", body, name, v, len(want[name]))
			case err == nil && v.kind != givenTwice && v.text != want.Get(name):
				t.Errorf("%q: %q: got %q, want %q", body, name, v.text, want.Get(name))
			}
		}
		if err == nil && len(want) != len(in.values) {
			t.Errorf("%q: got %d parameters, want %d", body, len(in.values), len(want))
		}
		parts := newInput("body")
		if err := parts.addMultipart(body, "multipart/form-data; boundary=x"); err != nil && err != errMultipart {
			t.Errorf("%q: got %v, want %v or none", body, err, errMultipart)
		}
	})
}

// FuzzDotenv reads a file .env. A value is taken as it stands between its quotes, if at all, and a fault shows none.
func FuzzDotenv(f *testing.F) {
	for _, row := range badDotenvs {
		f.Add(row.text)
	}
	for _, row := range goodSettings {
		f.Add(row.dotenv)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, faults := parseDotenv(text)
		for name, value := range values {
			if !isKnown(name) || !strings.Contains(text, value) || strings.Contains(value, "\n") {
				t.Errorf("%q: got %q=%q, want a setting and what stands in the file", text, name, value)
			}
		}
		if lines := strings.Count(text, "\n") + 1; len(faults)+len(values) > lines {
			t.Errorf("%q: got %d faults and %d values, want no more than %d lines", text, len(faults), len(values), lines)
		}
	})
}

// benchTokens returns what a user's access token is made of: two UUIDs, one scope, the default issuer.
func benchTokens() (*tokens, user) {
	return tokensAt(time.Unix(1795503214, 0), partsSecret), user{id: newUUID(), scopes: "me"}
}

func BenchmarkTokenSign(b *testing.B) {
	tokens, u := benchTokens()
	b.ReportAllocs()
	for b.Loop() {
		tokens.issue(u, accessToken, tokens.accessTTL)
	}
}

func BenchmarkTokenVerify(b *testing.B) {
	tokens, u := benchTokens()
	token := tokens.issue(u, accessToken, tokens.accessTTL)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokens.verify(token, accessToken); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHMAC is the floor of the two above: the same bytes through an HMAC that is used again.
func BenchmarkHMAC(b *testing.B) {
	tokens, u := benchTokens()
	token := tokens.issue(u, accessToken, tokens.accessTTL)
	signed := []byte(token[:strings.LastIndexByte(token, '.')])
	mac := hmac.New(sha256.New, []byte(partsSecret))
	var sum [sha256.Size]byte
	b.ReportAllocs()
	for b.Loop() {
		mac.Reset()
		mac.Write(signed)
		mac.Sum(sum[:0])
	}
}

func BenchmarkPasswordVerify(b *testing.B) {
	p := newPasswords(argon2Params{memory: 64 << 10, time: 3, threads: 4})
	encoded := p.hash("correct horse battery staple").reveal()
	b.ReportAllocs()
	for b.Loop() {
		if err := p.verify("correct horse battery staple", encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// A sink takes an answer and keeps nothing of it but its length.
type sink struct {
	header http.Header
	bytes  int
}

func (s *sink) Header() http.Header             { return s.header }
func (s *sink) WriteHeader(int)                 {}
func (s *sink) Write(b []byte) (n int, _ error) { s.bytes += len(b); return len(b), nil }

// benchServer knows a user, whose access token it returns with it, and logs to w.
func benchServer(b *testing.B, w io.Writer) (s *server, token string) {
	cfg, err := loadSettings([]string{"APP_JWT_SECRET=" + partsSecret, "APP_ADMIN_EMAIL="}, "")
	if err != nil {
		b.Fatal(err)
	}
	lines := newLineBuffer(w, nil)
	b.Cleanup(lines.close)
	if s, err = newServer(cfg, time.Now, newLogger("text", lines)); err != nil {
		b.Fatal(err)
	}
	u := user{id: newUUID(), email: "user@example.com", name: "Test User", scopes: "me admin"}
	if err := s.users.add(u); err != nil {
		b.Fatal(err)
	}
	return s, s.tokens.issue(u, accessToken, time.Hour)
}

// BenchmarkMe is the whole handler without the network: its wrappers, its token, its log line.
func BenchmarkMe(b *testing.B) {
	s, token := benchServer(b, io.Discard)
	handler := s.handler()
	r := httptest.NewRequest("GET", "/me", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(&sink{header: make(http.Header)}, r)
	}
}

// BenchmarkServe has 32 clients ask the same over loopback as fast as they can: a net/http server that answers a constant,
// one that does so with the headers and deadlines of this service, /me without its log, and /me with its log in a file,
// as it runs.
func BenchmarkServe(b *testing.B) {
	constant := func(header http.Header) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			maps.Copy(w.Header(), header)
			io.WriteString(w, `{"id":"0e3f7c1a-4a52-4b8e-9d0c-0f6c5f3b7a21","email":"user@example.com","name":"Test User","scopes":["me"]}`)
		}
	}
	contentType := http.Header{"Content-Type": jsonType}
	all := http.Header{"Content-Type": jsonType, "Cache-Control": noStore, "X-Content-Type-Options": noSniff, "X-Request-Id": {rand.Text()}}
	for _, bare := range []struct {
		name   string
		server *http.Server
	}{
		{"constant", &http.Server{Handler: constant(contentType)}},
		{"constant-with-headers", &http.Server{Handler: constant(all), ReadHeaderTimeout: defaultTimeouts.header,
			ReadTimeout: defaultTimeouts.request, WriteTimeout: defaultTimeouts.answer, IdleTimeout: defaultTimeouts.idle}},
	} {
		b.Run(bare.name, func(b *testing.B) {
			_, token := benchServer(b, io.Discard)
			benchServe(b, token, func(listener net.Listener) { bare.server.Serve(listener) })
		})
	}
	file, err := os.Create(b.TempDir() + "/log")
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	for _, log := range []struct {
		name string
		w    io.Writer
	}{{"me-without-log", nil}, {"me", file}} {
		b.Run(log.name, func(b *testing.B) {
			s, token := benchServer(b, log.w)
			if log.w == nil {
				s.log = &logger{slog.New(slog.DiscardHandler), func(requestLine) {}}
			}
			benchServe(b, token, func(listener net.Listener) { s.serve(b.Context(), listener, defaultTimeouts) })
		})
	}
}

// benchServe serves on loopback while clients who bear a token ask.
func benchServe(b *testing.B, token string, serve func(net.Listener)) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	go serve(listener)
	request := []byte("GET /me HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n")
	b.SetParallelism(32 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		answer := make([]byte, 4096)
		for pb.Next() {
			conn.Write(request)
			// An answer is shorter than what one read takes.
			if n, err := conn.Read(answer); err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200")) {
				b.Errorf("got %q and %v, want 200", answer[:n], err)
				return
			}
		}
	})
}

// filled returns a store of n users, and the last of them, at most 16.
func filled(n int) (s *users, last []user) {
	s = newUsers()
	for i := range n {
		u := user{id: newUUID(), email: fmt.Sprintf("user%07d@example.com", i), name: "Test User", scopes: "me"}
		s.add(u)
		if i >= n-16 {
			last = append(last, u)
		}
	}
	return s, last
}

// BenchmarkStore looks users up among n, and registers one more and takes it out again. The users looked up are few and
// always the same: what is measured is the work, not how long memory takes that no cache holds.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1, 1000, 1_000_000} {
		s, last := filled(n)
		b.Run(fmt.Sprintf("id/%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				s.withID(last[i%len(last)].id)
			}
		})
		b.Run(fmt.Sprintf("address/%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				s.withAddress(last[i%len(last)].email)
			}
		})
		b.Run(fmt.Sprintf("register/%d", n), func(b *testing.B) {
			u := user{id: newUUID(), email: "another@example.com", name: "Test User", scopes: "me"}
			for b.Loop() {
				s.add(u)
				delete(s.byID, u.id)
				delete(s.byAddress, u.email)
				s.inOrder = s.inOrder[:n]
			}
		})
	}
}

// BenchmarkStoreMemory says how many bytes a user costs beside its own strings.
func BenchmarkStoreMemory(b *testing.B) {
	const n = 1_000_000
	made := make([]user, n)
	for i := range made {
		made[i] = user{id: newUUID(), email: fmt.Sprintf("user%07d@example.com", i), name: "Test User", scopes: "me", hash: newSecret("x")}
	}
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := newUsers()
		for _, u := range made {
			s.add(u)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "bytes/user")
		runtime.KeepAlive(s)
	}
}

// BenchmarkListUsers writes the list of a million users.
func BenchmarkListUsers(b *testing.B) {
	s, token := benchServer(b, io.Discard)
	s.users, _ = filled(1_000_000)
	c, _ := s.tokens.verify(token, accessToken)
	s.users.add(user{id: c.subject, email: "admin@example.com", name: "Admin", scopes: "me admin"})
	r := httptest.NewRequest("GET", "/admin/users", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	handler := s.handler()
	b.ReportAllocs()
	for b.Loop() {
		w := &sink{header: make(http.Header)}
		handler.ServeHTTP(w, r)
		b.SetBytes(int64(w.bytes))
	}
}
