// Package browsertest drives the documentation page in Debian's chromium against the real program, as a newcomer would.
//
// It is a module of its own so that the service depends on no browser. To test a service that already runs, with its
// default admin, name it: BROWSERTEST_URL=http://127.0.0.1:8000 go test ./...
package browsertest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// A name that would run a script if anything took it for markup, and that a shell would trip over if it were not quoted.
const hostileName = `O'Brien <img src=x onerror=document.title="hacked">`

func TestPage(t *testing.T) {
	base := startService(t)
	p := newPage(t, base)
	p.do("open the page on a phone", chromedp.EmulateViewport(390, 844), chromedp.Navigate(base+"/docs"),
		chromedp.WaitVisible(chromedp.CSS("#op-listUsers")))
	p.wantNoSidewaysScroll("as it comes")

	p.beAdmin(t)
	p.beVisitor(t)

	p.want(`localStorage.length + sessionStorage.length + document.cookie.length`, 0)
	p.do("open everything", chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => d.open = true)`))
	p.wantNoSidewaysScroll("with everything open")
	p.finish([]string{"401 /auth/login", "401 /me", "403 /admin/users"}, nil)
}

// beAdmin mistypes the password, authorizes, looks at all users and at the admin, and logs out.
func (p *page) beAdmin(t *testing.T) {
	p.click("#open")
	p.wantNoSidewaysScroll("with the dialog open")
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
		t.Errorf("the curl command of /me answers %q, want the admin", got)
	}

	p.click("#open")
	p.click("#logout")
	p.wantText("#login-status", "Logged out")
	p.click("#close")
	p.execute("me", "401")
	p.wantText("#op-me .headers pre", "www-authenticate: Bearer")
}

// beVisitor registers somebody with a hostile name, who is kept out of the admin route, and uses each token that comes.
func (p *page) beVisitor(t *testing.T) {
	email := fmt.Sprintf("visitor-%d@example.com", time.Now().UnixNano())
	p.open("register")
	p.do("fill the form", chromedp.SetValue(chromedp.CSS("#register-email"), email),
		chromedp.SetValue(chromedp.CSS("#register-name"), hostileName))
	p.execute("register", "201")
	if got := p.runCurl("register"); !strings.Contains(got, " 409 ") || !strings.Contains(got, "already registered") {
		t.Errorf("the curl command of the same registration answers %q, want 409", got)
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
	p.do("fill the form", chromedp.SetValue(chromedp.CSS("#login-username"), email))
	p.execute("login", "200")
	p.open("health")
	p.execute("health", "200")
}

func TestPageByKeyboard(t *testing.T) {
	base := startService(t)
	p := newPage(t, base)
	visible := func(sel string) chromedp.Action[chromedp.Void] { return chromedp.WaitVisible(chromedp.CSS(sel)) }
	p.do("open the page", chromedp.EmulateViewport(1280, 800), chromedp.Navigate(base+"/docs"), visible("#op-me"))
	p.do("open the dialog by its button and close it by Escape",
		chromedp.KeyEvent("\t\r"), visible("#dialog"), chromedp.KeyEvent("\x1b"),
		chromedp.WaitNotVisible(chromedp.CSS("#dialog")))
	p.want(`document.activeElement.id === "open" ? 1 : 0`, 1)
	p.do("log in from the first field to Enter", chromedp.KeyEvent("\r"), visible("#dialog"),
		chromedp.KeyEvent("admin@example.com\tadmin-password\t \t \r"), visible("#login-status.good"))
	p.want(`document.querySelectorAll("[name=scope]:checked").length`, 2)
	p.do("close the dialog, which has the focus on Close", chromedp.KeyEvent("\r"),
		chromedp.WaitNotVisible(chromedp.CSS("#dialog")))
	p.do("open a row and execute", chromedp.Focus(chromedp.CSS("#op-me > summary")),
		chromedp.KeyEvent("\r\t\r"), visible(`#op-me .outcome[data-status="200"]`))
	p.finish(nil, nil)
}

// TestOutsideRequestsAreSeen keeps the other tests honest: a page that asks for anything elsewhere is caught and blocked.
func TestOutsideRequestsAreSeen(t *testing.T) {
	p := newPage(t, "http://127.0.0.1:1")
	p.do("ask elsewhere", chromedp.Navigate("about:blank"), chromedp.Evaluate[chromedp.Void](
		`fetch("http://outside.example/").catch(() => null)`, chromedp.EvalAwaitPromise))
	if p.finish(nil, []string{"http://outside.example/"}); len(p.complaints) == 0 {
		t.Error("a blocked request made no console error, want one")
	}
}

// A page is one tab with everything that it complained about.
type page struct {
	t    *testing.T
	ctx  context.Context
	base string

	mu         sync.Mutex // mu protects the fields below.
	complaints []string   // console errors and exceptions
	refused    []string   // the API's own refusals, which chromium reports as console errors too
	outside    []string   // requests to anywhere but base
}

func newPage(t *testing.T, base string) *page {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: apt-get install chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true),
		// No name resolves and no address is reached but the service's own.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	p := &page{t: t, ctx: ctx, base: base}
	if err := chromedp.Listen(ctx, p.listen); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	call(p, network.Enable, network.EnableParams{})
	call(p, fetch.Enable, fetch.EnableParams{})
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		_, err := chromedp.CallBrowser(ctx, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted,
		})
		if err != nil {
			t.Fatalf("grant %s: %v", name, err)
		}
	}
	return p
}

func call[P, R any](p *page, command cdp.Command[P, R], params P) {
	p.t.Helper()
	if _, err := chromedp.Call(p.ctx, command, params); err != nil {
		p.t.Fatalf("%s: %v", command.Method, err)
	}
}

// listen runs on the goroutine that reads from the browser, so it may not wait for a command's answer.
func (p *page) listen(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !p.isOwn(e.Request.URL) {
			p.outside = append(p.outside, e.Request.URL)
		}
	case *fetch.EventRequestPaused:
		go p.answerPaused(e)
	case *runtime.EventExceptionThrown:
		complaint := "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			complaint += " " + e.ExceptionDetails.Exception.Description
		}
		p.complaints = append(p.complaints, complaint)
	case *runtime.EventConsoleAPICalled:
		if e.Type != "log" && e.Type != "debug" && e.Type != "info" {
			var words []string
			for _, arg := range e.Args {
				words = append(words, string(arg.Value)+arg.Description)
			}
			p.complaints = append(p.complaints, fmt.Sprintf("console %s: %s", e.Type, words))
		}
	case *log.EventEntryAdded:
		p.hear(e.Entry)
	}
}

// hear takes apart what a reader of the console would see: chromium reports each 4xx as an error of its own.
func (p *page) hear(entry *log.Entry) {
	status, isAnswer := strings.CutPrefix(entry.Text, "Failed to load resource: the server responded with a status of ")
	path, isOwn := strings.CutPrefix(entry.URL, p.base)
	switch {
	case entry.Level != "error" && entry.Level != "warning":
	case isAnswer && isOwn && entry.Source == "network":
		path, _, _ = strings.Cut(path, "?")
		p.refused = append(p.refused, status[:3]+" "+path)
	default:
		p.complaints = append(p.complaints, fmt.Sprintf("%s %s: %s %s", entry.Source, entry.Level, entry.Text, entry.URL))
	}
}

func (p *page) isOwn(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "data" || u.Scheme == "about" || u.Scheme+"://"+u.Host == p.base)
}

// answerPaused blocks what goes elsewhere. Its errors are those of a tab that is closing.
func (p *page) answerPaused(e *fetch.EventRequestPaused) {
	if p.isOwn(e.Request.URL) {
		chromedp.Call(p.ctx, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: e.RequestID})
		return
	}
	chromedp.Call(p.ctx, fetch.FailRequest, fetch.FailRequestParams{
		RequestID: e.RequestID, ErrorReason: network.ErrorReasonBlockedByClient,
	})
}

func (p *page) do(step string, actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.t.Fatalf("%s: %v; the page complains of %q, was refused %q", step, err, p.complaints, p.refused)
	}
}

func (p *page) click(selector string) {
	p.t.Helper()
	p.do("click "+selector, chromedp.Click(chromedp.CSS(selector)))
}

func (p *page) open(operation string) {
	p.t.Helper()
	p.click("#op-" + operation + " > summary")
	p.do("open "+operation, chromedp.WaitVisible(chromedp.CSS("#op-"+operation+" form > button")))
}

// authorize fills the open dialog and waits for the outcome, good or bad.
func (p *page) authorize(username, password, outcome string) {
	p.t.Helper()
	p.do("fill the dialog", chromedp.SetValue(chromedp.CSS("#username"), username),
		chromedp.SetValue(chromedp.CSS("#password"), password))
	p.click("#authorize")
	p.do("see a "+outcome+" login", chromedp.WaitVisible(chromedp.CSS("#login-status."+outcome)))
}

// execute presses the button, which clears the last outcome at once, and waits for the new one.
func (p *page) execute(operation, status string) {
	p.t.Helper()
	p.click("#op-" + operation + " form > button")
	outcome := chromedp.CSS("#op-" + operation + " .outcome[data-status]")
	p.do("see an answer to "+operation, chromedp.WaitVisible(outcome))
	got, err := chromedp.Run(p.ctx, chromedp.AttributeValue(outcome, "data-status"))
	if err != nil || got.Value != status {
		p.t.Fatalf("%s: got status %q (%v), want %s", operation, got.Value, err, status)
	}
}

func (p *page) wantText(selector, want string) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.TextContent(chromedp.CSS(selector)))
	if err != nil || !strings.Contains(got, want) {
		p.t.Fatalf("%s: got text %q (%v), want %q in it", selector, got, err, want)
	}
}

func (p *page) want(expression string, want int) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.Evaluate[int](expression))
	if err != nil || got != want {
		p.t.Errorf("%s: got %d (%v), want %d", expression, got, err, want)
	}
}

func (p *page) wantNoSidewaysScroll(when string) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.Evaluate[int](
		`Math.max(...[document.documentElement, ...document.querySelectorAll("dialog, pre")].map((e) => e.scrollWidth - e.clientWidth))`))
	if err != nil || got > 0 {
		p.t.Errorf("%s: %d pixels hang over at the side (%v), want 0", when, got, err)
	}
}

// runCurl copies the shown command by its button, takes it from the clipboard, and lets a shell run it.
func (p *page) runCurl(operation string) string {
	p.t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		p.t.Fatal("curl is missing: apt-get install curl")
	}
	p.click("#op-" + operation + " .curl button")
	command, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](`navigator.clipboard.readText()`, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("read the clipboard: %v", err)
	}
	answer, err := exec.CommandContext(p.ctx, "sh", "-c", command).Output()
	if err != nil {
		p.t.Fatalf("run %q: %v", command, err)
	}
	return string(answer)
}

// finish compares all that the browser heard with what the test provoked.
func (p *page) finish(refused, outside []string) {
	p.t.Helper()
	p.do("settle", chromedp.WaitReady(chromedp.CSS("body")))
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.refused, refused) {
		p.t.Errorf("got refusals %q, want %q", p.refused, refused)
	}
	if !slices.Equal(p.outside, outside) {
		p.t.Errorf("got outside requests %q, want %q", p.outside, outside)
	}
	if len(p.complaints) > 0 && len(outside) == 0 {
		p.t.Errorf("got complaints %q, want none", p.complaints)
	}
}

// startService builds the program and runs it with nothing of this environment, until it answers.
func startService(t *testing.T) string {
	t.Helper()
	if running := os.Getenv("BROWSERTEST_URL"); running != "" {
		t.Logf("testing the service at %s, which this test did not build", running)
		return strings.TrimSuffix(running, "/")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "service"), ".")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the service: %v\n%s", err, out)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	service := exec.Command(filepath.Join(dir, "service"))
	service.Dir = dir
	service.Env = []string{"APP_ADDR=" + address, "APP_JWT_SECRET=" + rand.Text() + rand.Text()}
	var output strings.Builder
	service.Stderr = &output
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- service.Wait() }()
	t.Cleanup(func() {
		service.Process.Signal(syscall.SIGTERM)
		if err := <-exited; err != nil || t.Failed() {
			t.Errorf("the service ended with %v and said:\n%s", err, output.String())
		}
	})
	awaitHealth(t, "http://"+address, exited)
	return "http://" + address
}

func awaitHealth(t *testing.T, base string, exited chan error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		if response, err := http.Get(base + "/healthz"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case err := <-exited:
			exited <- err
			t.Fatalf("the service ended before it answered: %v", err)
		case <-deadline:
			t.Fatal("the service did not answer /healthz within 20 seconds")
		}
	}
}
