package throttle

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// newAtNoon returns a Throttle and its clock.
func newAtNoon() (*Throttle, *time.Time) {
	now := noon
	return New(func() time.Time { return now }), &now
}

// client returns one of many different clients.
func client(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

func failN(th *Throttle, n int, account string, client netip.Addr) {
	for range n {
		th.Failed(account, client)
	}
}

// waitFor returns the wait that Check wants, or -1 if its error has none.
func waitFor(th *Throttle, account string, client netip.Addr) time.Duration {
	var e *Error
	if errors.As(th.Check(account, client), &e) {
		return cmp.Or(e.RetryAfter, -1)
	}
	return 0
}

func wantWait(t *testing.T, th *Throttle, name, account string, client netip.Addr, want time.Duration) {
	t.Helper()
	if got := waitFor(th, account, client); got != want {
		t.Errorf("%s: got a wait of %v, want %v", name, got, want)
	}
}

// wantDue checks the wait, and that it ends on the nanosecond. It moves the clock there.
func wantDue(t *testing.T, th *Throttle, now *time.Time, name, account string, client netip.Addr, want time.Duration) {
	t.Helper()
	wantWait(t, th, name, account, client, want)
	*now = now.Add(want - 1)
	wantWait(t, th, name+", a nanosecond early", account, client, 1)
	*now = now.Add(1)
	wantWait(t, th, name+", at the end of the wait", account, client, 0)
}

func TestBackoff(t *testing.T) {
	th, now := newAtNoon()
	failN(th, 9, "a", client(1))
	wantWait(t, th, "9 failures", "a", client(1), 0)
	for failures, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300} {
		th.Failed("a", client(1))
		wantWait(t, th, "another account", "b", client(1), 0)
		wantWait(t, th, "another client", "a", client(2), 0)
		wantDue(t, th, now, fmt.Sprintf("%d failures", failures+10), "a", client(1), want*time.Second)
	}
	failN(th, 100, "a", client(1))
	wantWait(t, th, "120 failures", "a", client(1), 5*time.Minute)
	if err := th.Check("a", client(1)); err == nil || err.Error() != "too many attempts" {
		t.Errorf("got %v, want too many attempts", err)
	}
}

func TestAccountFailures(t *testing.T) {
	th, now := newAtNoon()
	for n := range 99 {
		th.Failed("a", client(n))
		*now = now.Add(time.Second)
	}
	wantWait(t, th, "99 failures", "a", client(98), 0)
	th.Failed("a", client(99))
	wantWait(t, th, "100 failures, the last client", "a", client(99), 5*time.Second)
	wantWait(t, th, "a client that failed a second earlier", "a", client(98), 4*time.Second)
	wantWait(t, th, "a client without failures", "a", client(100), 0)
	wantWait(t, th, "the last client on another account", "b", client(99), 0)
	wantDue(t, th, now, "the last client", "a", client(99), 5*time.Second)

	failN(th, 12, "a", client(101))
	wantWait(t, th, "a client whose own wait is shorter", "a", client(101), 5*time.Second)
	th.Failed("a", client(101))
	wantWait(t, th, "a client whose own wait is longer", "a", client(101), 8*time.Second)

	th.Succeeded("a", client(100))
	wantWait(t, th, "the longer wait after a success of another client", "a", client(101), 8*time.Second)
	for n := range 99 {
		th.Failed("a", client(n))
	}
	wantWait(t, th, "99 failures since the success", "a", client(98), 0)
	th.Failed("a", client(98))
	wantWait(t, th, "100 failures since the success", "a", client(98), 5*time.Second)
	th.Succeeded("a", client(101))
	wantWait(t, th, "the longer wait after a success of its client", "a", client(101), 0)
}

func TestClientFailures(t *testing.T) {
	fail := func(th *Throttle, n int) {
		for i := range n {
			th.Failed(fmt.Sprint(i), client(1))
		}
	}
	th, now := newAtNoon()
	fail(th, 49)
	wantWait(t, th, "49 failures", "new", client(1), 0)
	fail(th, 1)
	wantWait(t, th, "50 failures, another client", "new", client(2), 0)
	th.Succeeded("own", client(1))
	wantDue(t, th, now, "50 failures and a success", "new", client(1), 18*time.Second)
	fail(th, 20)
	wantDue(t, th, now, "20 concurrent failures", "new", client(1), 18*time.Second)
	*now = now.Add(9 * time.Second)
	fail(th, 1)
	wantDue(t, th, now, "a failure 27 seconds later", "new", client(1), 9*time.Second)
	for _, early := range []time.Duration{0, 1} {
		*now = now.Add(time.Hour)
		fail(th, 50)
		*now = now.Add(15*time.Minute - early)
		fail(th, 49)
		wantWait(t, th, fmt.Sprintf("49 failures 15 minutes less %d ns after 50", early), "new", client(1), early)
	}
}

func TestClockGoesBack(t *testing.T) {
	for _, back := range []time.Duration{1, time.Second, time.Hour, 365 * 24 * time.Hour} {
		th, now := newAtNoon()
		failN(th, 120, "a", client(1))
		*now = noon.Add(-back)
		wantWait(t, th, fmt.Sprintf("%v back", back), "a", client(1), 0)
		failN(th, 10, "a", client(1))
		wantWait(t, th, fmt.Sprintf("%v back, and 10 failures", back), "a", client(1), time.Second)
	}
}

func TestNil(t *testing.T) {
	var th *Throttle
	failN(th, 200, "a", client(1))
	th.Succeeded("a", client(1))
	wantWait(t, th, "nil", "a", client(1), 0)
}

func TestClients(t *testing.T) {
	for _, row := range []struct {
		name, a, b string
		want       bool
	}{
		{"two IPv4 addresses", "192.0.2.6", "192.0.2.7", false},
		{"one IPv6 /64", "2001:db8:1:2::", "2001:db8:1:2:ffff:ffff:ffff:ffff", true},
		{"two IPv6 /64", "2001:db8:1:2::", "2001:db8:1:3::", false},
		{"an IPv4 address in IPv6", "192.0.2.7", "::ffff:192.0.2.7", true},
		{"two zones", "fe80::1%eth0", "fe80::1%eth1", true},
		{"invalid addresses", "", "x", true},
		{"an invalid address and ::", "", "::", false},
	} {
		a, _ := netip.ParseAddr(row.a)
		b, _ := netip.ParseAddr(row.b)
		th, _ := newAtNoon()
		failN(th, 10, "a", a)
		if got := waitFor(th, "a", b) == time.Second; got != row.want {
			t.Errorf("%s: got one client: %t, want %t", row.name, got, row.want)
		}
		if len(th.records) != 3 {
			t.Errorf("%s: got %d records for one pair, want 3", row.name, len(th.records))
		}
	}
	th, _ := newAtNoon()
	th.Failed("", client(1))
	th.Failed("10.0.0.1/32", client(1))
	if len(th.records) != 5 {
		t.Errorf("got %d records for two accounts and a client, want 5", len(th.records))
	}
}

// TestEvict records a failure when there is no room. There are three groups of records, of nine,
// one and two failures each. In a group, each record is a nanosecond younger than the one before
// it.
func TestEvict(t *testing.T) {
	for _, row := range []struct {
		name        string
		groups      [3]int
		age         time.Duration // of the youngest record of the first group
		wantEvicted [3]int        // the first ones of each group
		want        int           // records that remain
	}{
		{"room for three records", [3]int{50, 50, 99_897}, 15 * time.Minute, [3]int{}, 100_000},
		{"room for two records", [3]int{0, 5000, 94_998}, 0, [3]int{0, 998, 0}, 99_003},
		{"more failures next", [3]int{0, 400, 99_600}, 0, [3]int{0, 400, 600}, 99_003},
		{"expired records first", [3]int{300, 5000, 94_700}, 15 * time.Minute, [3]int{300, 700, 0}, 99_003},
		{"enough expired records", [3]int{1500, 5000, 93_500}, 15 * time.Minute, [3]int{1500, 0, 0}, 98_503},
		{"records that expire in a nanosecond", [3]int{300, 5000, 94_700}, 15*time.Minute - 300, [3]int{0, 1000, 0}, 99_003},
	} {
		th, now := newAtNoon()
		*now = noon.Add(time.Second)
		youngest := [3]time.Time{now.Add(-row.age), *now, *now}
		keyOf := func(group, i int) key { return key{byte(group), byte(i >> 16), byte(i >> 8), byte(i)} }
		for group, size := range row.groups {
			for i := range size {
				at := youngest[group].Add(-time.Duration(size - 1 - i))
				th.records[keyOf(group, i)] = record{[3]int{9, 1, 2}[group], at}
			}
		}
		th.Failed("a", client(1))
		if got := len(th.records); got != row.want {
			t.Errorf("%s: got %d records, want %d", row.name, got, row.want)
		}
		for group, size := range row.groups {
			for i := range size {
				if _, got := th.records[keyOf(group, i)]; got != (i >= row.wantEvicted[group]) {
					t.Fatalf("%s: group %d, record %d: got it kept: %t", row.name, group, i, got)
				}
			}
		}
	}
}

// TestBounds floods a Throttle that has no room with failures on long account names, and checks
// the size of the map, its memory, and that the account under attack is not forgotten.
func TestBounds(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	th, now := newAtNoon()
	failN(th, 12, "victim", client(0))
	for n := range 35_000 {
		*now = now.Add(time.Microsecond)
		th.Failed(strings.Repeat("a", 1000)+fmt.Sprint(n), client(n))
		if got := len(th.records); got > 100_000 {
			t.Fatalf("got %d records, want at most 100000", got)
		}
	}
	wantWait(t, th, "the account under attack", "victim", client(0), 4*time.Second-35*time.Millisecond)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 16<<20 {
		t.Errorf("got %d bytes for 100000 records, want at most 16 MiB", got)
	}
	runtime.KeepAlive(th)
}

// TestConcurrency is for the race detector, and for failures that are lost.
func TestConcurrency(t *testing.T) {
	th, _ := newAtNoon()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				th.Failed("a", client(n))
				th.Check("a", client(n))
				th.Succeeded(fmt.Sprint(i), client(n))
			}
		})
	}
	wg.Wait()
	_, k, _ := keys("a", client(0))
	if got := th.records[k].failures; got != 1600 {
		t.Errorf("got %d failures, want 1600", got)
	}
}

// An event is a failure or a success in the history of FuzzThrottle.
type event struct {
	at              time.Time
	account, client int
	ok              bool
}

// inARow returns how many failures that match are in a row and not forgotten, and the last one.
func inARow(history []event, now time.Time, match func(event) bool) (n int, last time.Time) {
	for _, e := range append(history, event{at: now, account: -1, client: -1}) {
		if n > 0 && e.at.Sub(last) >= 15*time.Minute || match(e) && e.ok {
			n = 0
		}
		if match(e) && !e.ok {
			n++
			last = e.at
		}
	}
	return n, last
}

// wantedWait computes a wait from the history of all events.
func wantedWait(history []event, now time.Time, account, client int) time.Duration {
	pair, last := inARow(history, now, func(e event) bool { return e.account == account && e.client == client })
	all, _ := inARow(history, now, func(e event) bool { return e.account == account })
	var interval time.Duration
	for n := 10; n <= pair; n++ {
		interval = min(max(1*time.Second, 2*interval), 5*time.Minute)
	}
	if pair > 0 && all >= 100 {
		interval = max(interval, 5*time.Second)
	}
	tokens, since := 15*time.Minute, noon // as the time that they take to refill
	for _, e := range history {
		if e.client == client && !e.ok {
			tokens = max(0, min(15*time.Minute, tokens+e.at.Sub(since))-18*time.Second)
			since = e.at
		}
	}
	return max(0, last.Add(interval).Sub(now), 18*time.Second-tokens-now.Sub(since))
}

// FuzzThrottle reads a script of failures, successes and pauses of two clients on two accounts, and
// compares each wait with that computed from the history.
func FuzzThrottle(f *testing.F) {
	random := rand.New(rand.NewPCG(0, 0))
	for range 20 {
		script := make([]byte, 50)
		for i := range script {
			script[i] = byte(random.UintN(256))
		}
		f.Add(script)
	}
	pauses := []time.Duration{1, 1e9, 4e9, 17e9, 300e9, 900e9 - 1, 900e9}
	f.Fuzz(func(t *testing.T, script []byte) {
		th, now := newAtNoon()
		var history []event
		for _, b := range script[:min(len(script), 50)] {
			e := event{*now, int(b & 1), int(b >> 1 & 1), false}
			account, op := fmt.Sprint(e.account), int(b>>2)
			switch {
			case op < len(pauses):
				*now = now.Add(pauses[op])
			case op < 10:
				e.ok = true
				history = append(history, e)
				th.Succeeded(account, client(e.client))
			default:
				failures := (op - 8) / 2
				history = append(history, slices.Repeat([]event{e}, failures)...)
				failN(th, failures, account, client(e.client))
			}
			for i := range 4 {
				want := wantedWait(history, *now, i&1, i>>1)
				wantWait(t, th, fmt.Sprintf("%v, event %d", e, len(history)), fmt.Sprint(i&1), client(i>>1), want)
			}
		}
	})
}
