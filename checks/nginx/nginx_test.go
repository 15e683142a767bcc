// Package nginx tests the configuration that the README shows, in Debian's nginx.
package nginx

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"jwt-auth-api/checks/service"
)

// clientIP is the test's address. The service and nginx use 127.0.0.1.
const clientIP = "127.0.0.2"

const page = "for members"

// A recorder is a test that keeps its output.
type recorder struct {
	testing.TB
	output bytes.Buffer
}

func (r *recorder) Output() io.Writer { return io.MultiWriter(&r.output, r.TB.Output()) }

func Test(t *testing.T) {
	log := &recorder{}
	t.Run("nginx in front of the service", func(t *testing.T) {
		log.TB = t
		base := service.Start(log, "APP_TRUSTED_PROXIES=127.0.0.1/32")
		client := start(t, strings.TrimPrefix(base, "http://"))
		testProtectedPage(t, client, logIn(t, client))
	})
	// The service has exited, so its log is complete.
	requests := strings.Count(log.output.String(), "msg=request ")
	if got := strings.Count(log.output.String(), " client="+clientIP+" "); got == 0 || got != requests {
		t.Errorf("got %d requests with client=%s, want all %d", got, clientIP, requests)
	}
}

type tokenPair struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

func logIn(t *testing.T, client *http.Client) (pair tokenPair) {
	t.Helper()
	form := url.Values{"username": {"admin@example.com"}, "password": {"admin-password"}}
	status, body := do(t, client, "POST", "/auth/login", "", form.Encode())
	if err := json.Unmarshal([]byte(body), &pair); err != nil || status != http.StatusOK {
		t.Fatalf("login: got %d %s, want 200", status, body)
	}
	return pair
}

func testProtectedPage(t *testing.T, client *http.Client, pair tokenPair) {
	signed := pair.Access[:strings.LastIndex(pair.Access, ".")+1]
	rows := []struct {
		name, token, path, body string
		want                    int
	}{
		{"an access token", pair.Access, "/app/", "", 200},
		{"a body that is too large for the service", pair.Access, "/app/", strings.Repeat("x", 20<<10), 200},
		{"no token", "", "/app/", "", 401},
		{"a refresh token", pair.Refresh, "/app/", "", 401},
		{"a forged token", signed + strings.Repeat("A", 43), "/app/", "", 401},
		{"an unknown page without a token", "", "/app/unknown", "", 401},
		{"the location that only nginx requests", pair.Access, "/check", "", 404},
	}
	for _, row := range rows {
		status, body := do(t, client, "GET", row.path, row.token, row.body)
		if status != row.want || (body == page) != (row.want == 200) {
			t.Errorf("%s: got %d %s, want %d", row.name, status, body, row.want)
		}
	}
}

// do sends a request with a forged X-Forwarded-For.
func do(t *testing.T, client *http.Client, method, path, token, body string) (status int, respBody string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://auth.example.com"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-Forwarded-For", "203.0.113.7")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestREADME(t *testing.T) {
	conf, err := os.ReadFile("nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "\n```nginx\n"+string(conf)+"```\n") {
		t.Error("README.md: want a block nginx that equals nginx.conf")
	}
}
