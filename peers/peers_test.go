// Package peers measures other libraries at what this service does, with the same token and the same yardstick, an HMAC
// over the same bytes. It is a module of its own, so that the service depends on none of them.
//
//	go test -bench . -count 10
package peers

import (
	"crypto/hmac"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const secret = "the secret of these benchmarks, and of nothing else"

// A claims set as the service writes it.
type claims struct {
	Subject   string           `json:"sub"`
	Scopes    []string         `json:"scopes"`
	Type      string           `json:"type"`
	ID        string           `json:"jti"`
	IssuedAt  *jwt.NumericDate `json:"iat"`
	ExpiresAt *jwt.NumericDate `json:"exp"`
	Issuer    string           `json:"iss"`
}

func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.ExpiresAt, nil }
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.IssuedAt, nil }
func (c *claims) GetNotBefore() (*jwt.NumericDate, error)      { return nil, nil }
func (c *claims) GetIssuer() (string, error)                   { return c.Issuer, nil }
func (c *claims) GetSubject() (string, error)                  { return c.Subject, nil }
func (c *claims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }

func newClaims() *claims {
	now := time.Now()
	return &claims{
		Subject:   "2f38a2aa-3a5f-42db-834f-163f1d0a2347",
		Scopes:    []string{"me"},
		Type:      "access",
		ID:        uuid.NewString(),
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(15 * time.Minute)),
		Issuer:    "jwt-auth-api",
	}
}

func sign(tb testing.TB) string {
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, newClaims()).SignedString([]byte(secret))
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

// BenchmarkGolangJWTSign makes a new jti for each token, as the service does.
func BenchmarkGolangJWTSign(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		sign(b)
	}
}

func BenchmarkGolangJWTVerify(b *testing.B) {
	token := sign(b)
	key := func(*jwt.Token) (any, error) { return []byte(secret), nil }
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithIssuer("jwt-auth-api"),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithStrictDecoding())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parser.ParseWithClaims(token, new(claims), key); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHMAC is the yardstick: what the service's own benchmark of this name does, with this token.
func BenchmarkHMAC(b *testing.B) {
	token := sign(b)
	signed := []byte(token[:strings.LastIndexByte(token, '.')])
	mac := hmac.New(sha256.New, []byte(secret))
	var sum [sha256.Size]byte
	b.ReportAllocs()
	for b.Loop() {
		mac.Reset()
		mac.Write(signed)
		mac.Sum(sum[:0])
	}
}
