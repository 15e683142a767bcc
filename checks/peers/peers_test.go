// Package peers benchmarks other JWT libraries with the claims of the service's access tokens.
package peers

import (
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const secret = "a secret that only these benchmarks use"

// claims are the claims of an access token, in the service's order.
type claims struct {
	Subject   string           `json:"sub"`
	Scopes    []string         `json:"scopes"`
	Type      string           `json:"type"`
	ID        string           `json:"jti"`
	IssuedAt  *jwt.NumericDate `json:"iat"`
	ExpiresAt *jwt.NumericDate `json:"exp"`
	Issuer    string           `json:"iss"`
	Session   string           `json:"sid"`
}

func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.ExpiresAt, nil }
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.IssuedAt, nil }
func (c *claims) GetNotBefore() (*jwt.NumericDate, error)      { return nil, nil }
func (c *claims) GetIssuer() (string, error)                   { return c.Issuer, nil }
func (c *claims) GetSubject() (string, error)                  { return c.Subject, nil }
func (c *claims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }

// sign returns a token with a new jti, as the service does for each token.
func sign(tb testing.TB) string {
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, &claims{
		Subject:   "2f38a2aa-3a5f-42db-834f-163f1d0a2347",
		Scopes:    []string{"me"},
		Type:      "access",
		ID:        uuid.NewString(),
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(15 * time.Minute)),
		Issuer:    "jwt-auth-api",
		Session:   "9d0c1f5e-6a8b-4c7e-9f21-0b3d5a7c8e64",
	}).SignedString([]byte(secret))
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

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
