package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/chromedp/chromedp"

	"jwt-auth-api/checks/service"
)

// app is the script of a browser app. It registers, mistypes the password, logs in and reads /me,
// and returns what it reads.
const app = `(async () => {
	const send = async (path, body, headers) => {
		const method = body ? "POST" : "GET";
		const response = await fetch(%q + path, {method, headers, body: body && JSON.stringify(body)});
		return {...await response.json(), challenge: response.headers.get("WWW-Authenticate")};
	};
	const json = {"Content-Type": "application/json"};
	const email = "app@example.com", password = "secret123";
	await send("/auth/register", {email, password, name: "App"}, json);
	const wrong = await send("/auth/login", {username: email, password: "wrong-password"}, json);
	const pair = await send("/auth/login", {username: email, password}, json);
	const me = await send("/me", undefined, {Authorization: "Bearer " + pair.access_token});
	return [wrong.detail, wrong.challenge, me.email].join(", ");
})().catch(String)`

func TestCORS(t *testing.T) {
	listed, unlisted := serveApp(t), serveApp(t)
	base := service.Start(t, "APP_CORS_ORIGINS="+listed)
	p := newPage(t, base, listed, unlisted)
	run := func(origin, want string) {
		t.Helper()
		p.do("open the app", chromedp.Navigate(origin))
		got, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](fmt.Sprintf(app, base), chromedp.EvalAwaitPromise))
		if err != nil || got != want {
			t.Errorf("app at %s: got %q (%v), want %q", origin, got, err, want)
		}
	}
	run(listed, "incorrect email or password, Bearer, app@example.com")
	p.finish([]string{"401 /auth/login"}, nil)
	run(unlisted, "TypeError: Failed to fetch")
}

// serveApp serves an empty page until the test ends and returns its origin.
func serveApp(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
	}))
	t.Cleanup(server.Close)
	return server.URL
}
