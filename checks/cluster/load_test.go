package cluster

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// An operation is the input of one in the history. The state of its key is a number: of an email 1 if
// it is registered, of a password which one it is, of a session its generation or -1 if it has ended.
type operation struct {
	kind, key string
	arg, next int
}

// A result is the output of an operation. The status is 0 if the operation may have been done or not,
// or may still be.
type result struct{ status, gen int }

// model is the service with one replica that never fails.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[string][]porcupine.Operation{}
		for _, op := range history {
			key := op.Input.(operation).key
			parts[key] = append(parts[key], op)
		}
		return slices.Collect(maps.Values(parts))
	},
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		want, next := step(state.(int), input.(operation))
		got := output.(result)
		again := got.status == 204 && input.(operation).kind == "logout" // two at once may both succeed
		return got.status == 0 || got == want || again, next
	},
}

// step returns the result of an operation and the next state.
func step(state int, op operation) (result, int) {
	switch {
	case op.kind == "register" && state == 0:
		return result{status: 201}, 1
	case op.kind == "register":
		return result{status: 409}, state
	case op.kind == "login" && state == op.arg:
		return result{status: 200}, state
	case op.kind == "password" && state == op.arg:
		return result{status: 204}, op.next
	case op.kind == "password":
		return result{status: 403}, state
	case op.kind == "logout" && state >= 0:
		return result{status: 204}, -1
	case op.kind == "login", op.kind == "logout":
		return result{status: 401}, state
	case state < 0 || op.arg < state-1: // The session has ended, or ends because its token is reused.
		return result{status: 401}, -1
	case op.arg == state-1:
		return result{200, state}, state
	}
	return result{200, op.arg + 1}, op.arg + 1
}

// A load is nine clients, three at each replica, and the history of what they did. Those of one kind
// use the same emails, the same password or the same session, so they compete.
type load struct {
	t       testing.TB
	urls    []string
	down    [3]atomic.Bool  // the replica may fail to respond
	cut     [3]atomic.Bool  // the replica may not know of changes elsewhere
	last    [3]atomic.Int64 // when the latest of the writes began that the replica has acknowledged
	session atomic.Pointer[session]
	emails  atomic.Int64 // registered
	ctx     context.Context
	clients sync.WaitGroup

	mu      sync.Mutex // protects the fields below
	history []porcupine.Operation
	slowest time.Duration // of the acknowledged writes
	tried   []int         // passwords
	ended   []string      // access tokens
}

// A session has the latest tokens of a session.
type session struct {
	name            string
	access, refresh string
}

func newSession(name string, pair reply) *session {
	return &session{name, pair.text("access_token"), pair.text("refresh_token")}
}

// startLoad runs clients of three replicas. The function that it also returns stops them.
func startLoad(t testing.TB, urls []string) (*load, func()) {
	l := &load{t: t, urls: urls, tried: []int{0}}
	ctx, stop := context.WithCancel(t.Context())
	l.ctx = ctx
	t.Cleanup(func() { stop(); l.clients.Wait() })
	want(t, "registration", register(urls[0], "pw@example.com", passwordN(0)), 201)
	want(t, "registration", register(urls[0], "session@example.com", password), 201)
	for i := range urls {
		l.clients.Go(func() { l.registerEmails(i) })
		l.clients.Go(func() { l.changePasswords(i) })
		l.clients.Go(func() { l.refreshTokens(i) })
	}
	return l, stop
}

// pause waits before the next operation, and reports whether there is to be one.
func (l *load) pause(d time.Duration) bool {
	select {
	case <-l.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// do calls the service at replica i, and adds the operation to the history. A 503 must have a
// Retry-After, and only a replica that is down may fail in another way.
func (l *load) do(i int, op operation, request func() reply) reply {
	begin := time.Now()
	r := request()
	out, end := result{status: r.status}, time.Now().UnixNano()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case r.status == 503 && r.retry != "", r.status == 0 && l.down[i].Load(),
		r.status == 401 && op.kind == "password": // Another change ended the session.
		out, end = result{}, math.MaxInt64
	case r.status >= 500, r.status == 0:
		l.t.Errorf("%v at replica %d: got %d %v %v", op, i, r.status, r.body, r.err)
	case r.status < 300:
		l.last[i].Store(begin.UnixNano())
		l.slowest = max(l.slowest, r.took)
	}
	if op.kind == "refresh" {
		out.gen = gen(r.text("refresh_token"))
	}
	l.history = append(l.history, porcupine.Operation{
		ClientId: i, Input: op, Call: begin.UnixNano(), Output: out, Return: end})
	return r
}

func emailN(n int64) string  { return fmt.Sprintf("load%d@example.com", n) }
func passwordN(n int) string { return fmt.Sprintf("password-%d", n) }

func (l *load) register(i int, n int64) reply {
	return l.do(i, operation{kind: "register", key: emailN(n)}, func() reply {
		return register(l.urls[i], emailN(n), password)
	})
}

func (l *load) registerEmails(i int) {
	for n := int64(0); l.pause(100 * time.Millisecond); {
		if r := l.register(i, n); r.status == 201 || r.status == 409 {
			n++
		}
		l.emails.Store(max(l.emails.Load(), n))
	}
}

// changePasswords logs in and changes the password. After a change with an unknown outcome it tries
// the earlier passwords: a failed login is a read too.
func (l *load) changePasswords(i int) {
	for n, back := i+1, 0; l.pause(200 * time.Millisecond); n += len(l.urls) {
		l.mu.Lock()
		known := l.tried[len(l.tried)-1-back%len(l.tried)]
		l.mu.Unlock()
		pair := l.do(i, operation{"login", "pw", known, 0}, func() reply {
			return login(l.urls[i], "pw@example.com", passwordN(known))
		})
		if back++; pair.status != 200 {
			continue
		}
		back = 0
		r := l.do(i, operation{"password", "pw", known, n}, func() reply {
			return post(l.urls[i]+"/auth/password", pair.text("access_token"),
				map[string]any{"current_password": passwordN(known), "new_password": passwordN(n)})
		})
		if r.status != 403 {
			l.mu.Lock()
			l.tried = append(l.tried, n)
			l.mu.Unlock()
		}
	}
}

// refreshTokens refreshes the tokens of the session, and ends it now and then.
func (l *load) refreshTokens(i int) {
	for n := 1; l.pause(20 * time.Millisecond); n++ {
		s := l.session.Load()
		switch {
		case s == nil:
			if r := login(l.urls[i], "session@example.com", password); r.status == 200 {
				l.session.CompareAndSwap(nil, newSession(fmt.Sprint("session", i, "-", n), r))
			}
		case n%40 == 0:
			r := l.do(i, operation{kind: "logout", key: s.name}, func() reply {
				return post(l.urls[i]+"/auth/logout", s.access, nil)
			})
			if r.status == 204 {
				l.session.CompareAndSwap(s, nil)
				l.clients.Go(func() { l.loggedOut(s.access) })
			}
		default:
			r := l.do(i, operation{"refresh", s.name, gen(s.refresh), 0}, func() reply {
				return refresh(l.urls[i], s.refresh)
			})
			if r.status == 200 {
				l.session.CompareAndSwap(s, newSession(s.name, r))
			} else if r.status == 401 {
				l.session.CompareAndSwap(s, nil)
			}
		}
	}
}

// loggedOut checks that a logout is effective everywhere after 2 s.
func (l *load) loggedOut(token string) {
	l.mu.Lock()
	l.ended = append(l.ended, token)
	l.mu.Unlock()
	if !l.pause(2 * time.Second) {
		return
	}
	for i, url := range l.urls {
		if r := get(url+"/me", token); r.status == 200 && !l.cut[i].Load() {
			l.t.Errorf("/me at replica %d 2 s after a logout: got 200, want 401", i)
		}
	}
}

// recovered waits until each of the replicas has acknowledged a write that began after now.
func (l *load) recovered(within time.Duration, replicas ...int) {
	l.t.Helper()
	now := time.Now()
	for _, i := range replicas {
		await(l.t, time.Until(now.Add(within)), fmt.Sprintf("replica %d writes again", i), func() bool {
			return l.last[i].Load() > now.UnixNano()
		})
	}
}

// check reads at every replica what was acknowledged, after the load has stopped. The reads are part
// of the history, which must be linearizable.
func (l *load) check() {
	l.t.Helper()
	l.clients.Wait()
	healthy(l.t, 10*time.Second, l.urls...)
	for i, url := range l.urls {
		for n := range l.emails.Load() {
			l.register(i, n)
		}
		for _, n := range l.tried[max(0, len(l.tried)-10):] {
			l.do(i, operation{"login", "pw", n, 0}, func() reply { return login(url, "pw@example.com", passwordN(n)) })
		}
		for _, token := range l.ended {
			want(l.t, "/me after a logout", get(url+"/me", token), 401)
		}
	}
	l.t.Logf("%d operations, %d emails, %d password changes, %d logouts, slowest write %s",
		len(l.history), l.emails.Load(), len(l.tried), len(l.ended), l.slowest.Round(time.Millisecond))
	for _, part := range model.Partition(l.history) {
		if verdict := porcupine.CheckOperationsTimeout(model, part, 30*time.Second); verdict != porcupine.Ok {
			l.t.Errorf("history: got %s, want linearizable", verdict)
			for _, op := range part {
				l.t.Log(op.ClientId, time.Unix(0, op.Call), time.Unix(0, op.Return), op.Input, op.Output)
			}
		}
	}
}
