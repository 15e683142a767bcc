package browser

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
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

// A page is one tab of a browser that reaches nothing except the service and the other origins
// given.
type page struct {
	t       *testing.T
	ctx     context.Context
	base    string   // the origin of the service
	origins []string // all that the page reaches

	mu       sync.Mutex // mu protects the fields below.
	errors   []string   // console errors, warnings and exceptions
	rejected []string   // 4xx responses of the service, as "status path"
	outside  []string   // URLs of blocked requests
}

func newPage(t *testing.T, base string, others ...string) *page {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(lookPath(t, "chromium")),
		chromedp.DisableGPU, chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true),
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
	p := &page{t: t, ctx: ctx, base: base, origins: append(others, base)}
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

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v; install it with: apt-get install %s", err, name)
	}
	return path
}

func call[P, R any](p *page, command cdp.Command[P, R], params P) {
	p.t.Helper()
	if _, err := chromedp.Call(p.ctx, command, params); err != nil {
		p.t.Fatalf("%s: %v", command.Method, err)
	}
}

// listen records an event. It runs on the goroutine that reads from the browser, so it must not
// wait for the result of a command.
func (p *page) listen(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !p.reaches(e.Request.URL) {
			p.outside = append(p.outside, e.Request.URL)
		}
	case *fetch.EventRequestPaused:
		go p.resume(e)
	case *runtime.EventExceptionThrown:
		text := "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		p.errors = append(p.errors, text)
	case *runtime.EventConsoleAPICalled:
		if e.Type != "log" && e.Type != "debug" && e.Type != "info" {
			var args []string
			for _, arg := range e.Args {
				args = append(args, string(arg.Value)+arg.Description)
			}
			p.errors = append(p.errors, fmt.Sprintf("console %s: %s", e.Type, args))
		}
	case *log.EventEntryAdded:
		p.record(e.Entry)
	}
}

// record sorts an entry of the console. Chromium reports each 4xx response as an error.
func (p *page) record(entry *log.Entry) {
	status, isResponse := strings.CutPrefix(entry.Text, "Failed to load resource: the server responded with a status of ")
	path, isOwn := strings.CutPrefix(entry.URL, p.base)
	switch {
	case entry.Level != "error" && entry.Level != "warning":
	case isResponse && isOwn && entry.Source == "network":
		path, _, _ = strings.Cut(path, "?")
		p.rejected = append(p.rejected, status[:3]+" "+path)
	default:
		p.errors = append(p.errors, fmt.Sprintf("%s %s: %s %s", entry.Source, entry.Level, entry.Text, entry.URL))
	}
}

func (p *page) reaches(rawURL string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && (u.Scheme == "data" || u.Scheme == "about" || slices.Contains(p.origins, u.Scheme+"://"+u.Host))
}

// resume continues a request to the page's origins and blocks any other. It ignores errors, which
// only a closing tab causes.
func (p *page) resume(e *fetch.EventRequestPaused) {
	if p.reaches(e.Request.URL) {
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
		p.t.Fatalf("%s: %v; console errors %q, rejected requests %q", step, err, p.errors, p.rejected)
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

// authorize fills in the open dialog and waits for the outcome, good or bad.
func (p *page) authorize(username, password, outcome string) {
	p.t.Helper()
	p.do("fill in the dialog", chromedp.SetValue(chromedp.CSS("#username"), username),
		chromedp.SetValue(chromedp.CSS("#password"), password))
	p.click("#authorize")
	p.do("wait for a "+outcome+" login", chromedp.WaitVisible(chromedp.CSS("#login-status."+outcome)))
}

// execute presses the button, which clears the last outcome at once, and waits for the new one.
func (p *page) execute(operation, status string) {
	p.t.Helper()
	p.click("#op-" + operation + " form > button")
	outcome := chromedp.CSS("#op-" + operation + " .outcome[data-status]")
	p.do("wait for the response to "+operation, chromedp.WaitVisible(outcome))
	got, err := chromedp.Run(p.ctx, chromedp.AttributeValue(outcome, "data-status"))
	if err != nil || got.Value != status {
		p.t.Fatalf("%s: got status %q (%v), want %s", operation, got.Value, err, status)
	}
}

func (p *page) wantText(selector, want string) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.TextContent(chromedp.CSS(selector)))
	if err != nil || !strings.Contains(got, want) {
		p.t.Fatalf("%s: got text %q (%v), want one that contains %q", selector, got, err, want)
	}
}

func (p *page) want(expression string, want int) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.Evaluate[int](expression))
	if err != nil || got != want {
		p.t.Errorf("%s: got %d (%v), want %d", expression, got, err, want)
	}
}

func (p *page) wantNoHorizontalScroll(when string) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.Evaluate[int](`Math.max(...[document.documentElement,
		...document.querySelectorAll("dialog, pre")].map((e) => e.scrollWidth - e.clientWidth))`))
	if err != nil || got > 0 {
		p.t.Errorf("%s: got an overflow of %d pixels (%v), want 0", when, got, err)
	}
}

// runCurl copies the displayed command with its button, runs the clipboard's text in a shell, and
// returns the output.
func (p *page) runCurl(operation string) string {
	p.t.Helper()
	lookPath(p.t, "curl")
	p.click("#op-" + operation + " .curl button")
	command, err := chromedp.Run(p.ctx,
		chromedp.Evaluate[string](`navigator.clipboard.readText()`, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("read the clipboard: %v", err)
	}
	output, err := exec.CommandContext(p.ctx, "sh", "-c", command).Output()
	if err != nil {
		p.t.Fatalf("run %q: %v", command, err)
	}
	return string(output)
}

// finish compares what the browser recorded with what the test provoked.
func (p *page) finish(rejected, outside []string) {
	p.t.Helper()
	p.do("settle", chromedp.WaitReady(chromedp.CSS("body")))
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.rejected, rejected) {
		p.t.Errorf("got rejected requests %q, want %q", p.rejected, rejected)
	}
	if !slices.Equal(p.outside, outside) {
		p.t.Errorf("got blocked requests %q, want %q", p.outside, outside)
	}
	if len(p.errors) > 0 && len(outside) == 0 {
		p.t.Errorf("got console errors %q, want none", p.errors)
	}
}
