// Package browser tests the page that the service serves at /docs, in Debian's Chromium.
package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"jwt-auth-api/checks/service"
)

// hostileName runs a script if it is taken for markup, and breaks a shell command that does not
// quote it.
const hostileName = `O'Brien <img src=x onerror=document.title="hacked">`

func TestPage(t *testing.T) {
	base := service.Start(t)
	p := newPage(t, base)
	p.do("open the page on a phone", chromedp.EmulateViewport(390, 844), chromedp.Navigate(base+"/docs"),
		chromedp.WaitVisible(chromedp.CSS("#op-listUsers")))
	p.wantNoHorizontalScroll("after loading")

	p.useAsAdmin(t)
	p.useAsVisitor(t)

	p.want(`localStorage.length + sessionStorage.length + document.cookie.length`, 0)
	p.do("open everything",
		chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => d.open = true)`))
	p.wantNoHorizontalScroll("with everything open")
	p.finish([]string{"401 /auth/login", "401 /me", "403 /admin/users"}, nil)
}

// useAsAdmin mistypes the password, logs in, reads all users and the admin, and logs out.
func (p *page) useAsAdmin(t *testing.T) {
	p.click("#open")
	p.wantNoHorizontalScroll("with the dialog open")
	p.click("[name=scope][value=me]")
	p.click("[name=scope][value=admin]")
	p.authorize("admin@example.com", "wrong-password", "bad")
	p.wantText("#login-status", "incorrect email or password")
	p.authorize("admin@example.com", "admin-password", "good")
	p.click("#close")

	p.open("listUsers")
	p.execute("listUsers", "200")
	p.wantText("#op-listUsers .body pre", `"email": "admin@example.com"`)
	p.wantText("#op-listUsers .headers pre", "x-content-type-options: nosniff")
	p.open("me")
	p.execute("me", "200")
	p.wantText("#op-me .body pre", `"id": "admin-0"`)
	p.wantText("#op-me .outcome", " ms")
	if got := p.runCurl("me"); !strings.Contains(got, " 200 ") || !strings.Contains(got, "admin-0") {
		t.Errorf("curl command of /me: got %q, want 200 and the admin", got)
	}

	p.logOut()
	p.execute("me", "401")
	p.wantText("#op-me .headers pre", "www-authenticate: Bearer")
}

// logOut logs out in the dialog.
func (p *page) logOut() {
	p.t.Helper()
	p.click("#open")
	p.click("#logout")
	p.do("wait for the logout", chromedp.WaitVisible(chromedp.CSS("#credentials")))
	p.wantText("#login-status", "Logged out")
	p.click("#close")
}

// useAsVisitor registers a user with a hostile name, uses each token pair that the service returns,
// and is rejected by the admin route.
func (p *page) useAsVisitor(t *testing.T) {
	email := fmt.Sprintf("visitor-%d@example.com", time.Now().UnixNano())
	p.open("register")
	p.do("fill in the form", chromedp.SetValue(chromedp.CSS("#register-email"), email),
		chromedp.SetValue(chromedp.CSS("#register-name"), hostileName))
	p.execute("register", "201")
	if got := p.runCurl("register"); !strings.Contains(got, " 409 ") || !strings.Contains(got, "already registered") {
		t.Errorf("curl command of the same registration: got %q, want 409", got)
	}
	p.click("#op-register .body button")
	p.wantText("#session", email)
	p.execute("listUsers", "403")
	p.wantText("#op-listUsers .body pre", "Missing required scope: admin")
	p.execute("me", "200")
	p.wantText("#op-me .body pre", strings.ReplaceAll(hostileName, `"`, `\"`))
	p.want(`document.images.length + document.querySelectorAll("#operations script").length`, 0)
	p.want(`document.title === "JWT Auth API" ? 1 : 0`, 1)

	p.open("refresh")
	p.execute("refresh", "200")
	p.click("#op-refresh .body button")
	p.open("login")
	p.do("fill in the form", chromedp.SetValue(chromedp.CSS("#login-username"), email))
	p.execute("login", "200")
	p.open("health")
	p.execute("health", "200")
}

func TestPageByKeyboard(t *testing.T) {
	base := service.Start(t)
	p := newPage(t, base)
	visible := func(sel string) chromedp.Action[chromedp.Void] { return chromedp.WaitVisible(chromedp.CSS(sel)) }
	p.do("open the page", chromedp.EmulateViewport(1280, 800), chromedp.Navigate(base+"/docs"), visible("#op-me"))
	p.do("open the dialog with its button and close it with Escape",
		chromedp.KeyEvent("\t\r"), visible("#dialog"), chromedp.KeyEvent("\x1b"),
		chromedp.WaitNotVisible(chromedp.CSS("#dialog")))
	p.want(`document.activeElement.id === "open" ? 1 : 0`, 1)
	p.do("log in from the first field to Enter", chromedp.KeyEvent("\r"), visible("#dialog"),
		chromedp.KeyEvent("admin@example.com\tadmin-password\t \t \r"), visible("#login-status.good"))
	p.want(`document.querySelectorAll("[name=scope]:checked").length`, 2)
	p.do("close the dialog, whose focus is on Close", chromedp.KeyEvent("\r"),
		chromedp.WaitNotVisible(chromedp.CSS("#dialog")))
	p.do("open a row and execute", chromedp.Focus(chromedp.CSS("#op-me > summary")),
		chromedp.KeyEvent("\r\t\r"), visible(`#op-me .outcome[data-status="200"]`))
	p.finish(nil, nil)
}

// expire makes the next request of the page carry an invalid access token, as if its own had
// expired.
const expire = `(() => {
	const send = fetch;
	window.fetch = (url, options) => {
		window.fetch = send;
		return send(url, {...options, headers: {Authorization: "Bearer expired"}});
	};
})()`

// TestPageSessions lets the access token expire, which the page refreshes, and logs out with the
// page's button. The page then notices that another session has ended.
func TestPageSessions(t *testing.T) {
	base := service.Start(t)
	p := newPage(t, base)
	p.do("open the page", chromedp.EmulateViewport(1280, 800), chromedp.Navigate(base+"/docs"),
		chromedp.WaitVisible(chromedp.CSS("#op-me")))
	login := func() {
		t.Helper()
		p.click("#open")
		p.authorize("admin@example.com", "admin-password", "good")
		p.click("#close")
	}
	login()
	p.open("listSessions")
	p.do("let the access token expire", chromedp.Evaluate[chromedp.Void](expire))
	p.execute("listSessions", "200")
	p.wantText("#op-listSessions .body pre", `"current": true`)
	p.do("let the access token expire again", chromedp.Evaluate[chromedp.Void](expire))
	p.logOut()
	if got := p.runCurl("listSessions"); !strings.Contains(got, " 401 ") {
		t.Errorf("curl command of /me/sessions after the logout: got %q, want 401", got)
	}

	login()
	p.useAsEditor(t)
	p.open("logout")
	p.execute("logout", "204")
	p.execute("listSessions", "401")
	p.wantText("#session", "Not authorized")
	p.finish([]string{"401 /me/sessions", "401 /auth/logout", "404 /admin/users/no%2Fbody", "409 /admin/users/admin-0",
		"401 /me/sessions", "401 /auth/refresh"}, nil)
}

// useAsEditor changes the admin, with a list and a boolean in the body, after it looked up an
// unknown user.
func (p *page) useAsEditor(t *testing.T) {
	set := func(id, value string) {
		t.Helper()
		p.do("fill in "+id, chromedp.SetValue(chromedp.CSS("#"+id), value))
	}
	p.open("getUser")
	set("getUser-id", "no/body")
	p.execute("getUser", "404")
	p.open("patchUser")
	set("patchUser-scopes", `["me","admin","x"]`)
	p.execute("patchUser", "200")
	p.wantText("#op-patchUser .body pre", `"x"`)
	set("patchUser-disabled", "true")
	p.execute("patchUser", "409")
}

// TestOtherOrigin ensures that the driver blocks and records a request to another origin.
func TestOtherOrigin(t *testing.T) {
	p := newPage(t, "http://127.0.0.1:1")
	p.do("fetch from another origin", chromedp.Navigate("about:blank"), chromedp.Evaluate[chromedp.Void](
		`fetch("http://outside.example/").catch(() => null)`, chromedp.EvalAwaitPromise))
	if p.finish(nil, []string{"http://outside.example/"}); len(p.errors) == 0 {
		t.Error("blocked request: got no console error, want one")
	}
}
