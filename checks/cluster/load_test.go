package cluster

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"jwt-auth-api/checks/service"
)

// An operation is the input of an entry of the history. The state of its key is a number: of an
// email 1 if it is registered, of a password which one it is, of a session its generation or -1 if
// it has ended.
type operation struct {
	kind, key string
	arg, next int
}

// A result is the output of an operation. The status is 0 if the operation may or may not have been
// executed, or may still be.
type result struct{ status, gen int }

// model is one key of a service with one replica that never fails.
var model = porcupine.Model{
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
	case op.kind == "delete":
		return result{status: 204}, 0
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

// A load is nine clients, three at each replica, and the history of their requests. Those of one
// kind use the same emails, the same password or the same session, so they compete.
type load struct {
	*cluster
	down     [3]atomic.Bool        // the replica may fail to respond
	cut      [3]atomic.Bool        // the replica may lack changes made elsewhere
	last     [3]atomic.Int64       // when the latest of the writes began that the replica has acknowledged
	session  atomic.Pointer[reply] // the latest tokens, with a name for the session
	n        atomic.Int64          // numbers of operations
	stranger reply                 // tokens of an unknown user
	boss     string                // access token of the admin
	emails   atomic.Int64          // three times the number of emails
	stopped  atomic.Bool
	clients  sync.WaitGroup

	mu      sync.Mutex                       // protects the fields below
	history map[string][]porcupine.Operation // by key
	tried   []int                            // passwords
	ended   []string                         // access tokens
}

// startLoad runs the clients until check.
func (c *cluster) startLoad() *load {
	l := &load{cluster: c, boss: c.admin(), tried: []int{0}, history: map[string][]porcupine.Operation{}}
	c.t.Cleanup(l.stop)
	elsewhere := service.Start(c.t, "APP_JWT_SECRET="+secret)
	l.stranger = want(c.t, "registration", register(elsewhere, "eve@example.com", password), 201)
	c.register(0, "session@example.com")
	want(c.t, "registration", register(c.urls[0], "pw@example.com", passwordN(0)), 201)
	for i := range 3 {
		l.repeat(100*time.Millisecond, func() { l.register(i, int(l.emails.Add(1)/3)) })
		l.repeat(200*time.Millisecond, func() { l.changePassword(i) })
		l.repeat(20*time.Millisecond, func() { l.refresh(i) })
	}
	return l
}

func (l *load) repeat(pause time.Duration, f func()) {
	l.clients.Go(func() {
		for ; !l.stopped.Load(); time.Sleep(pause) {
			f()
		}
	})
}

func (l *load) stop() {
	l.stopped.Store(true)
	l.clients.Wait()
}

// do calls the service at replica i, and adds the operation to the history. A 503 must have a
// Retry-After, and only a replica that is down may fail in another way.
func (l *load) do(i int, op operation, request func() reply) reply {
	begin := time.Now()
	r := request()
	out, end := result{r.status, gen(r.Refresh)}, time.Now().UnixNano()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case r.status == 503 && r.retry != "", r.status == 0 && l.down[i].Load(),
		r.status == 401 && op.kind == "password": // Another change ended the session.
		out, end = result{}, math.MaxInt64
	case r.status >= 500, r.status == 0:
		l.t.Errorf("%v at replica %d: got %d %s %v", op, i, r.status, r.body, r.err)
	case r.status < 300:
		l.last[i].Store(begin.UnixNano())
	}
	if op.kind == "password" && r.status != 403 {
		l.tried = append(l.tried, op.next)
	}
	l.history[op.key] = append(l.history[op.key], porcupine.Operation{
		ClientId: i, Input: op, Call: begin.UnixNano(), Output: out, Return: end})
	return r
}

// gen returns the generation of a refresh token.
func gen(token string) int {
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(token+"..", ".")[1])
	var claims struct{ Gen int }
	json.Unmarshal(payload, &claims)
	return claims.Gen
}

// register registers an email, and deletes every fourth user.
func (l *load) register(i, n int) {
	email := fmt.Sprintf("load%d@example.com", n)
	op := operation{kind: "register", key: email}
	r := l.do(i, op, func() reply { return register(l.urls[i], email, password) })
	if id := get(l.urls[i]+"/me", r.Access).ID; id != "" && n%4 == 0 {
		op.kind = "delete"
		l.do(i, op, func() reply { return call("DELETE", l.urls[i]+"/admin/users/"+id, "Bearer "+l.boss, nil) })
	}
}

func passwordN(n int) string { return fmt.Sprintf("password-%d", n) }

func (l *load) login(i, n int) reply {
	return l.do(i, operation{"login", "pw", n, 0}, func() reply {
		return login(l.urls[i], "pw@example.com", passwordN(n))
	})
}

// changePassword logs in with a recent password and changes it. A failed login is a read too.
func (l *load) changePassword(i int) {
	l.mu.Lock()
	known := l.tried[max(0, len(l.tried)-1-int(rand.ExpFloat64()*2))]
	l.mu.Unlock()
	if pair := l.login(i, known); pair.status == 200 {
		n := int(l.n.Add(1))
		l.do(i, operation{"password", "pw", known, n}, func() reply {
			return changePassword(l.urls[i], pair.Access, passwordN(known), passwordN(n))
		})
	}
}

// refresh refreshes the tokens of the session, and ends it now and then.
func (l *load) refresh(i int) {
	s := l.session.Load()
	if s == nil {
		if r := login(l.urls[i], "session@example.com", password); r.status == 200 {
			r.Name = fmt.Sprint("session", l.n.Add(1))
			l.session.CompareAndSwap(nil, &r)
		}
		return
	}
	op := operation{"refresh", s.Name, gen(s.Refresh), 0}
	request := func() reply { return refresh(l.urls[i], s.Refresh) }
	if l.n.Add(1)%40 == 0 {
		op = operation{kind: "logout", key: s.Name}
		request = func() reply { return post(l.urls[i]+"/auth/logout", s.Access, object{}) }
	}
	r := l.do(i, op, request)
	switch r.Name = s.Name; r.status {
	case 200:
		l.session.CompareAndSwap(s, &r)
	case 204:
		l.clients.Go(func() { l.loggedOut(s.Access) })
		fallthrough
	case 401:
		l.session.CompareAndSwap(s, nil)
	}
}

// loggedOut checks that a logout is effective everywhere after 2 s.
func (l *load) loggedOut(token string) {
	l.mu.Lock()
	l.ended = append(l.ended, token)
	l.mu.Unlock()
	time.Sleep(2 * time.Second)
	for i, url := range l.urls {
		if r := get(url+"/me", token); r.status == 200 && !l.cut[i].Load() {
			l.t.Errorf("/me at replica %d 2 s after a logout: got 200, want 401", i)
		}
	}
}

// recovered waits until replicas are healthy and have acknowledged writes that began after now.
func (l *load) recovered(replicas ...int) {
	l.t.Helper()
	now := time.Now()
	for _, i := range replicas {
		l.healthy(i, time.Until(now.Add(recovery)))
		await(l.t, time.Until(now.Add(recovery)), fmt.Sprintf("replica %d writes again", i), func() bool {
			return l.last[i].Load() > now.UnixNano()
		})
	}
}

// check reads at every replica what was acknowledged, after the load has stopped. The reads are
// part of the history, which must be linearizable.
func (l *load) check() {
	l.stop()
	emails := int(l.emails.Load()/3) + 1
	for i, url := range l.urls {
		for n := range emails {
			l.register(i, n)
		}
		for _, n := range l.tried[max(0, len(l.tried)-10):] {
			l.login(i, n)
		}
		for _, token := range l.ended {
			want(l.t, "/me after a logout", get(url+"/me", token), 401)
		}
	}
	l.sameLists(0)
	l.t.Logf("%d emails, %d password changes, %d logouts", emails, len(l.tried), len(l.ended))
	for key, history := range l.history {
		if verdict := porcupine.CheckOperationsTimeout(model, history, 30*time.Second); verdict != porcupine.Ok {
			l.t.Errorf("history of %s: got %s, want linearizable", key, verdict)
			for _, op := range history {
				l.t.Log(op.ClientId, time.Unix(0, op.Call), time.Unix(0, op.Return), op.Input, op.Output)
			}
		}
	}
}
