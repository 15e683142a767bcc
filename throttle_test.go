package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// noon is on a boundary between two minutes, as far as the throttle's clock is concerned.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// throttleAt returns a throttle and its clock, which a test moves.
func throttleAt(start time.Time) (*throttle, *time.Time) {
	now := start
	return newThrottle(func() time.Time { return now }), &now
}

// nthClient returns clients that are all different.
func nthClient(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// wantWait fails if a client has to wait for another time than this before it may try an address, or if check, which
// the service asks, says something else than wait.
func wantWait(t *testing.T, th *throttle, name, address string, client netip.Addr, want time.Duration) {
	t.Helper()
	got := th.wait(address, client)
	if got != want {
		t.Errorf("%s: got a wait of %v, want %v", name, got, want)
	}
	err := th.check(address, client)
	var throttled *throttledError
	if errors.As(err, &throttled) != (got > 0) || throttled != nil && throttled.wait != got || throttled == nil && err != nil {
		t.Errorf("%s: got %v from check, want the wait of %v", name, err, got)
	}
}

// TestBackoff fails as soon as the throttle allows it, so that each wait is the one after the last.
func TestBackoff(t *testing.T) {
	th, now := throttleAt(noon)
	waits := []time.Duration{
		0, 0, 0, 0, 0, 0, 0, 0, 0, 1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second,
		32 * time.Second, 64 * time.Second, 128 * time.Second, 256 * time.Second, 300 * time.Second, 300 * time.Second,
	}
	for failures := range 90 {
		wantWait(t, th, fmt.Sprintf("after %d failures and their waits", failures), "a", loopback, 0)
		th.failed("a", loopback)
		want := waits[min(failures, len(waits)-1)]
		wantWait(t, th, fmt.Sprintf("failure %d", failures+1), "a", loopback, want)
		if want > 0 {
			*now = now.Add(want - 1)
			wantWait(t, th, fmt.Sprintf("failure %d, a nanosecond too early", failures+1), "a", loopback, 1)
			*now = now.Add(1)
		}
	}
}

// TestPairsAreApart fails so often at one address by one client that a wait is due, which is nobody else's.
func TestPairsAreApart(t *testing.T) {
	th, _ := throttleAt(noon)
	for range 10 {
		th.failed("a", nthClient(1))
	}
	wantWait(t, th, "the client at the address", "a", nthClient(1), time.Second)
	wantWait(t, th, "the client at another address", "b", nthClient(1), 0)
	wantWait(t, th, "another client at the address", "a", nthClient(2), 0)
}

// TestAddressFailures has a hundred clients fail at one address.
func TestAddressFailures(t *testing.T) {
	th, now := throttleAt(noon)
	for n := range 99 {
		th.failed("a", nthClient(n))
		*now = now.Add(time.Second)
	}
	wantWait(t, th, "99 failures", "a", nthClient(98), 0)
	th.failed("a", nthClient(99))
	wantWait(t, th, "the last who failed", "a", nthClient(99), 5*time.Second)
	wantWait(t, th, "who failed a second before", "a", nthClient(98), 4*time.Second)
	wantWait(t, th, "who failed five seconds before", "a", nthClient(94), 0)
	wantWait(t, th, "who did not fail", "a", nthClient(100), 0)
	wantWait(t, th, "who failed, at another address", "b", nthClient(99), 0)

	// The owner needs two tries.
	th.failed("a", nthClient(100))
	*now = now.Add(5*time.Second - 1)
	wantWait(t, th, "the owner, a nanosecond too early", "a", nthClient(100), 1)
	*now = now.Add(1)
	wantWait(t, th, "the owner, five seconds later", "a", nthClient(100), 0)

	for range 12 {
		th.failed("a", nthClient(101))
	}
	wantWait(t, th, "a client's own wait is less", "a", nthClient(101), 5*time.Second)
	th.failed("a", nthClient(101))
	wantWait(t, th, "a client's own wait is more", "a", nthClient(101), 8*time.Second)

	th.succeeded("a", nthClient(100))
	wantWait(t, th, "the owner has got in: who failed once", "a", nthClient(99), 0)
	wantWait(t, th, "the owner has got in: who waits for himself", "a", nthClient(101), 8*time.Second)
	for n := range 99 {
		th.failed("a", nthClient(n))
	}
	wantWait(t, th, "99 failures since the owner got in", "a", nthClient(98), 0)
	th.failed("a", nthClient(98))
	wantWait(t, th, "100 failures since the owner got in", "a", nthClient(98), 5*time.Second)
}

// TestSucceeded looks at what a good login forgets, and at what it does not.
func TestSucceeded(t *testing.T) {
	th, _ := throttleAt(noon)
	for range 15 {
		th.failed("a", nthClient(1))
		th.failed("a", nthClient(2))
		th.failed("b", nthClient(1))
	}
	th.succeeded("a", nthClient(1))
	wantWait(t, th, "the client at the address", "a", nthClient(1), 0)
	wantWait(t, th, "another client at the address", "a", nthClient(2), 32*time.Second)
	wantWait(t, th, "the client at another address", "b", nthClient(1), 32*time.Second)
	for range 9 {
		th.failed("a", nthClient(1))
	}
	wantWait(t, th, "nine failures since", "a", nthClient(1), 0)
	th.failed("a", nthClient(1))
	wantWait(t, th, "ten failures since", "a", nthClient(1), time.Second)

	// Who has an account himself logs in between his guesses.
	for n := range 60 {
		th.succeeded("mine", nthClient(1))
		wantWait(t, th, "before a hundred failures", "c", nthClient(1), 0)
		th.failed(fmt.Sprint("c", n), nthClient(1))
	}
	th.succeeded("mine", nthClient(1))
	if got := th.wait("mine", nthClient(1)); got != 15*time.Minute {
		t.Errorf("a hundred failures between good logins: got a wait of %v, want 15m", got)
	}
}

// TestForgetting waits for 15 minutes less a nanosecond, and then for that too. Each row fails before that in its way.
func TestForgetting(t *testing.T) {
	for _, row := range []struct {
		name   string
		fail   func(th *throttle)
		client int
	}{
		{"one client at one address", func(th *throttle) {
			for range 18 {
				th.failed("a", nthClient(1))
			}
		}, 1},
		{"many clients at one address", func(th *throttle) {
			for n := range 99 {
				th.failed("a", nthClient(n))
			}
		}, 98},
	} {
		for _, early := range []time.Duration{0, 1} {
			th, now := throttleAt(noon)
			row.fail(th)
			*now = now.Add(15*time.Minute - early)
			th.failed("a", nthClient(row.client))
			remembered := th.wait("a", nthClient(row.client)) > 0
			if remembered != (early > 0) {
				t.Errorf("%s: 15 minutes less %v: got its failures kept: %t, want %t", row.name, early, remembered, early > 0)
			}
		}
	}
}

// TestClientWindow has one client fail at addresses of which no two are the same.
func TestClientWindow(t *testing.T) {
	at := func(minute, second int, failures int) []time.Time {
		return slices.Repeat([]time.Time{noon.Add(time.Duration(minute)*time.Minute + time.Duration(second)*time.Second)}, failures)
	}
	for _, row := range []struct {
		name     string
		failures []time.Time
		opens    time.Duration // after noon; 0 if it stays open
	}{
		{"99 at once", at(0, 0, 99), 0},
		{"100 at the end of a minute", at(0, 59, 100), 15*time.Minute + 59*time.Second},
		{"256 at once, by clients that did not ask before", at(0, 59, 256), 15*time.Minute + 59*time.Second},
		{"100 on both sides of a minute's end", slices.Concat(at(0, 59, 99), at(1, 0, 1)), 16 * time.Minute},
		{"half of them 14 minutes later", slices.Concat(at(0, 30, 50), at(14, 30, 50)), 16 * time.Minute},
		{"the first alone is old", slices.Concat(at(0, 59, 1), at(15, 58, 99)), 16 * time.Minute},
		{"the first is too old", slices.Concat(at(0, 59, 1), at(15, 58, 98), at(16, 0, 1)), 0},
		{"the last counts for longest", slices.Concat(at(0, 0, 10), at(5, 0, 10), at(10, 0, 80)), 16 * time.Minute},
		{"more than enough", slices.Concat(at(0, 0, 10), at(5, 0, 20), at(10, 0, 90)), 21 * time.Minute},
		{"as many again in the same place of the ring", slices.Concat(at(0, 0, 60), at(8, 0, 1), at(16, 0, 60)), 0},
		{"after a pause in which nothing is forgotten", slices.Concat(at(0, 0, 90), at(14, 59, 1), at(29, 0, 90)), 0},
	} {
		th, now := throttleAt(noon)
		for i, failure := range row.failures {
			*now = failure
			th.failed(fmt.Sprint(i), loopback)
		}
		if got := th.wait("new", loopback) > 0; got != (row.opens > 0) {
			t.Errorf("%s: got it closed: %t, want %t", row.name, got, row.opens > 0)
		}
		if row.opens == 0 {
			continue
		}
		*now = noon.Add(row.opens - 1)
		if th.wait("new", loopback) == 0 {
			t.Errorf("%s: a nanosecond before %v: got it open, want it closed", row.name, row.opens)
		}
		wantWait(t, th, row.name+": another client", "new", nthClient(1), 0)
		*now = noon.Add(row.opens)
		wantWait(t, th, fmt.Sprintf("%s: at %v", row.name, row.opens), "new", loopback, 0)
	}
}

// TestClientWindowAtRandom tries at random times and holds the throttle against a list of all failures: no 15 minutes
// have more than a hundred, the client waits only if it has to, and when its wait is over it may try.
func TestClientWindowAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		th, now := throttleAt(noon)
		var failures []time.Time
		pause := time.Second
		for try := range 2000 {
			if random.IntN(50) == 0 {
				pause = time.Duration(random.Int64N(int64(20 * time.Second)))
			}
			*now = now.Add(time.Duration(random.Int64N(int64(pause) + 1)))
			if random.IntN(300) == 0 {
				*now = now.Add(time.Duration(random.Int64N(int64(20 * time.Minute))))
			}
			if wait := th.wait("new", loopback); wait > 0 {
				checkClosed(t, th, now, failures, wait)
				continue
			}
			th.failed(fmt.Sprint(try), loopback)
			failures = append(failures, *now)
			if n := len(failures); n > 100 && now.Sub(failures[n-101]) < 15*time.Minute {
				t.Fatalf("seed %d: got 101 failures in %v, want them in 15m or more", seed, now.Sub(failures[n-101]))
			}
		}
		if len(failures) < 500 || len(failures) == 2000 {
			t.Errorf("seed %d: got %d tries let through, want some of both", seed, len(failures))
		}
	}
}

// checkClosed checks that a client which has to wait had a hundred failures in 15 minutes and the minute that they may
// begin in, and then moves the clock to when the wait is over.
func checkClosed(t *testing.T, th *throttle, now *time.Time, failures []time.Time, wait time.Duration) {
	t.Helper()
	n := len(failures)
	if n < 100 || now.Sub(failures[n-100]) >= 16*time.Minute {
		t.Fatalf("got a wait of %v after %d failures, want a hundred in 16 minutes", wait, n)
	}
	opens := now.Add(wait)
	if forgotten := failures[n-1].Add(15 * time.Minute); forgotten.Before(opens) {
		opens = forgotten // Without a failure since, there is nothing that would count.
	}
	if early := opens.Sub(failures[n-100]); early < 15*time.Minute || early > 16*time.Minute {
		t.Fatalf("got it open %v after the first of a hundred failures, want 15m to 16m", early)
	}
	*now = opens.Add(-1)
	if th.wait("new", loopback) == 0 {
		t.Fatal("a nanosecond before it opens: got it open, want it closed")
	}
	*now = opens
	if got := th.wait("new", loopback); got != 0 {
		t.Fatalf("got a wait of %v more, want none", got)
	}
}

// TestThrottleClockGoesBack sets the clock back, in which nothing is gained: what counted counts on.
func TestThrottleClockGoesBack(t *testing.T) {
	for _, back := range []time.Duration{time.Second, time.Minute, 15 * time.Minute, time.Hour, 24 * time.Hour} {
		th, now := throttleAt(noon)
		for range 10 {
			th.failed("a", loopback)
		}
		*now = noon.Add(-back)
		if got := th.wait("a", loopback); got < time.Second {
			t.Errorf("%v back: got a wait of %v, want one as before, or longer", back, got)
		}
		th.failed("a", loopback)
		wantWait(t, th, fmt.Sprintf("%v back, another failure", back), "a", loopback, 2*time.Second)
		for n := range 89 {
			th.failed(fmt.Sprint(n), loopback)
		}
		if got := th.wait("new", loopback); back <= time.Minute && got == 0 {
			t.Errorf("%v back, a hundred failures in all: got no wait, want one", back)
		}
		for n := range 100 {
			th.failed(fmt.Sprint(n), loopback)
		}
		if got := th.wait("new", loopback); got == 0 || got > 16*time.Minute {
			t.Errorf("%v back, a hundred failures there: got a wait of %v, want one of 16m at most", back, got)
		}
	}
}

func TestNilThrottle(t *testing.T) {
	var th *throttle
	for range 200 {
		th.failed("a", loopback)
	}
	th.succeeded("a", loopback)
	wantWait(t, th, "no throttle", "a", loopback, 0)
}

func TestClientOf(t *testing.T) {
	for _, row := range []struct{ name, addr, want string }{
		{"IPv4", "192.0.2.7", "192.0.2.7/32"},
		{"IPv6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{"the first of 64 bits", "2001:db8:1:2::", "2001:db8:1:2::/64"},
		{"the next 64 bits", "2001:db8:1:3::1", "2001:db8:1:3::/64"},
		{"loopback of IPv6", "::1", "::/64"},
		{"IPv4 in IPv6, plain", "::ffff:192.0.2.7", "192.0.2.7/32"},
		{"a zone, plain", "fe80::1%eth0", "fe80::/64"},
		{"none", "", "invalid Prefix"},
	} {
		addr, _ := netip.ParseAddr(row.addr)
		if got := clientOf(plainAddress(addr)).String(); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

// fillThrottle puts records in, as many as there is room for, that are all new to every test.
func fillThrottle(th *throttle, n int, fill func(i int) record) (keys []uint64) {
	for i := range n {
		r := fill(i)
		key := maphash.Comparable(th.seed, guess{address: fmt.Sprint("filler ", i)})
		th.records[key] = &r
		keys = append(keys, key)
	}
	return keys
}

// TestMakeRoom fails once when there is no room, and looks for what is left of a hundred thousand records. The first of
// them had their last failure fifteen minutes ago, the next have failed once, and all others twice, each a nanosecond
// after the one before it.
func TestMakeRoom(t *testing.T) {
	for _, row := range []struct {
		name                         string
		filled, old, once            int
		since                        time.Duration // the last failure of the youngest of the old
		goneOld, goneOnce, goneTwice int
		kept                         int
	}{
		{"there is room for three", 99_997, 0, 50, 0, 0, 0, 0, 100_000},
		{"there is room, and some are forgotten", 99_997, 50, 50, 15 * time.Minute, 0, 0, 0, 100_000},
		{"there is room for two", 99_998, 0, 5000, 0, 0, 1000, 0, 99_001},
		{"the oldest of those who failed least go", 100_000, 0, 5000, 0, 0, 1000, 0, 99_003},
		{"then those who failed more", 100_000, 0, 400, 0, 0, 400, 600, 99_003},
		{"those who are forgotten go first", 100_000, 300, 5000, 15 * time.Minute, 300, 700, 0, 99_003},
		{"those who are forgotten are enough", 100_000, 1500, 5000, 15 * time.Minute, 1500, 0, 0, 98_503},
		{"fifteen minutes are not over", 100_000, 300, 5000, 15*time.Minute - 300, 0, 1000, 0, 99_003},
	} {
		th, now := throttleAt(noon)
		*now = noon.Add(time.Second)
		keys := fillThrottle(th, row.filled, func(i int) record {
			switch {
			case i < row.old:
				return record{failures: 9, last: now.Add(-row.since - time.Duration(row.old-1-i))}
			case i < row.old+row.once:
				return record{failures: 1, last: noon.Add(time.Duration(i))}
			}
			return record{failures: 2, last: noon.Add(time.Duration(i))}
		})
		th.failed("a", loopback)
		if got := len(th.records); got != row.kept {
			t.Errorf("%s: got %d records, want %d", row.name, got, row.kept)
		}
		for i, key := range keys {
			gone := i < row.goneOld
			if once := i - row.old; once >= 0 {
				gone = once < row.goneOnce
			}
			if twice := i - row.old - row.once; twice >= 0 {
				gone = twice < row.goneTwice
			}
			if kept := th.records[key] != nil; kept == gone {
				t.Fatalf("%s: record %d: got it kept: %t, want %t", row.name, i, kept, !gone)
			}
		}
	}
}

// TestThrottleIsBounded attacks one account, and then fails at ten thousand others, each by a client of its own, to have
// that one forgotten.
func TestThrottleIsBounded(t *testing.T) {
	th, now := throttleAt(noon)
	fillThrottle(th, maxRecords-10_000, func(int) record { return record{failures: 1, last: noon} })
	for range 12 {
		th.failed("victim", loopback)
	}
	for n := range 4_000 {
		*now = now.Add(time.Microsecond)
		th.failed(fmt.Sprint(n), nthClient(n))
		if got := len(th.records); got > 100_000 {
			t.Fatalf("got %d records, want 100000 at most", got)
		}
	}
	wantWait(t, th, "the account that is attacked", "victim", loopback, 4*time.Second-4*time.Millisecond)
	for range 88 {
		th.failed("victim", nthClient(1))
	}
	wantWait(t, th, "its failures by whomever", "victim", nthClient(1), 5*time.Minute)
	*now = now.Add(5 * time.Minute)
	th.failed("victim", nthClient(2))
	wantWait(t, th, "another client there", "victim", nthClient(2), 5*time.Second)
}

// TestThrottleMemory measures what a hundred thousand records take.
func TestThrottleMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	th, _ := throttleAt(noon)
	for n := range maxRecords / 3 {
		th.failed(strings.Repeat("a", 200)+fmt.Sprint(n), nthClient(n))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := len(th.records); got != 99_999 {
		t.Errorf("got %d records, want 99999", got)
	}
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 16<<20 {
		t.Errorf("got %d bytes for a hundred thousand records, want 16 MiB at most", got)
	}
	runtime.KeepAlive(th)
}

// TestThrottleSeeds looks for keys that somebody could have computed for the records of another process.
func TestThrottleSeeds(t *testing.T) {
	one, _ := throttleAt(noon)
	other, _ := throttleAt(noon)
	one.failed("a", loopback)
	other.failed("a", loopback)
	for key := range one.records {
		if other.records[key] != nil {
			t.Errorf("got the key %x in two throttles, want each to have its own", key)
		}
	}
	if len(one.records) != 3 {
		t.Errorf("got %d records of one failure, want 3", len(one.records))
	}
}

// TestThrottleConcurrently is for the race detector, and for failures that get lost.
func TestThrottleConcurrently(t *testing.T) {
	th := newThrottle(time.Now)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				th.failed("a", loopback)
				th.failed(fmt.Sprint(i, n), nthClient(i))
				th.check("a", nthClient(n))
				th.succeeded(fmt.Sprint(i, n), nthClient(i))
			}
		})
	}
	wg.Wait()
	r := th.find(guess{address: "a", client: clientOf(loopback)}, time.Now())
	if r == nil || r.failures != 1600 {
		t.Errorf("got %v, want a record of 1600 failures", r)
	}
	if got := len(th.records); got != 3+8 {
		t.Errorf("got %d records, want 3 of the address and its client, and one of each of 8 clients", got)
	}
}

func TestClientAddress(t *testing.T) {
	for _, row := range []struct {
		name, proxies, peer string
		forwarded           []string
		want                string
	}{
		{"no proxies", "", "192.0.2.1:80", nil, "192.0.2.1"},
		{"no proxies, a spoofed header", "", "192.0.2.1:80", []string{"203.0.113.9"}, "192.0.2.1"},
		{"no proxies, a spoofed header on loopback", "", "127.0.0.1:80", []string{"203.0.113.9"}, "127.0.0.1"},
		{"the peer is no proxy", "10.0.0.0/8", "192.0.2.1:80", []string{"203.0.113.9"}, "192.0.2.1"},
		{"the peer is next to a proxy", "10.0.0.1", "10.0.0.2:80", []string{"203.0.113.9"}, "10.0.0.2"},
		{"a proxy", "10.0.0.0/8", "10.0.0.1:80", []string{"203.0.113.9"}, "203.0.113.9"},
		{"a proxy that says nothing", "10.0.0.0/8", "10.0.0.1:80", nil, "10.0.0.1"},
		{"a proxy that says an empty text", "10.0.0.0/8", "10.0.0.1:80", []string{""}, "10.0.0.1"},
		{"the client wrote the first", "10.0.0.0/8", "10.0.0.1:80", []string{"198.51.100.1, 203.0.113.9"}, "203.0.113.9"},
		{"the client wrote a proxy's address", "10.0.0.0/8", "10.0.0.1:80", []string{"10.0.0.2, 203.0.113.9"}, "203.0.113.9"},
		{"two proxies", "10.0.0.0/8", "10.0.0.1:80", []string{"203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"two proxies, and the client wrote the first", "10.0.0.0/8", "10.0.0.1:80", []string{"198.51.100.1,203.0.113.9,10.0.0.2"}, "203.0.113.9"},
		{"proxies of two networks", "10.0.0.0/8,172.16.0.0/12", "10.0.0.1:80", []string{"203.0.113.9, 172.16.0.1, 10.0.0.2"}, "203.0.113.9"},
		{"several headers are one", "10.0.0.0/8", "10.0.0.1:80", []string{"198.51.100.1", "203.0.113.9", "10.0.0.2"}, "203.0.113.9"},
		{"several headers, the last of a list", "10.0.0.0/8", "10.0.0.1:80", []string{"198.51.100.1", "198.51.100.2, 203.0.113.9"}, "203.0.113.9"},
		{"nothing but proxies", "10.0.0.0/8", "10.0.0.1:80", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"a word", "10.0.0.0/8", "10.0.0.1:80", []string{"unknown"}, "10.0.0.1"},
		{"a word left of a proxy", "10.0.0.0/8", "10.0.0.1:80", []string{"203.0.113.9, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"a word that the client wrote", "10.0.0.0/8", "10.0.0.1:80", []string{"unknown, 203.0.113.9"}, "203.0.113.9"},
		{"a comma at the end", "10.0.0.0/8", "10.0.0.1:80", []string{"203.0.113.9,"}, "10.0.0.1"},
		{"a port", "10.0.0.0/8", "10.0.0.1:80", []string{"203.0.113.9:1234"}, "10.0.0.1"},
		{"spaces and tabs", "10.0.0.0/8", "10.0.0.1:80", []string{" \t203.0.113.9\t , \t10.0.0.2 "}, "203.0.113.9"},
		{"IPv6", "2001:db8::/32", "[2001:db8::1]:80", []string{"2001:db9::7"}, "2001:db9::7"},
		{"IPv6 in brackets", "2001:db8::/32", "[2001:db8::1]:80", []string{"[2001:db9::7]"}, "2001:db8::1"},
		{"IPv6 with a zone", "10.0.0.0/8", "10.0.0.1:80", []string{"fe80::1%x\ny"}, "fe80::1"},
		{"a peer with a zone", "fe80::/10", "[fe80::1%eth0]:80", []string{"203.0.113.9"}, "203.0.113.9"},
		{"a proxy behind IPv6", "10.0.0.0/8", "[::ffff:10.0.0.1]:80", []string{"203.0.113.9"}, "203.0.113.9"},
		{"a client in IPv6's spelling of IPv4", "10.0.0.0/8", "10.0.0.1:80", []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{"a second proxy in IPv6's spelling of IPv4", "10.0.0.0/8", "10.0.0.1:80", []string{"203.0.113.9, ::ffff:10.0.0.2"}, "203.0.113.9"},
		{"a peer that is no address", "10.0.0.0/8", "@", []string{"203.0.113.9"}, "invalid IP"},
		{"a peer without a port", "10.0.0.0/8", "10.0.0.1", []string{"203.0.113.9"}, "invalid IP"},
		{"a proxy for all, and a peer that is no address", "0.0.0.0/0,::/0", "", []string{"203.0.113.9"}, "invalid IP"},
	} {
		var cfg settings
		if err := cfg.readTrustedProxies(row.proxies); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("POST", "/auth/login", nil)
		r.RemoteAddr = row.peer
		r.Header = http.Header{"X-Forwarded-For": row.forwarded}
		if got := clientAddress(r, cfg.trustedProxies).String(); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

// loginErrors tries to log in as often as said, one after the other, and counts the errors.
func loginErrors(t *testing.T, s *server, tries int, address, password string) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range tries {
		_, err := s.checkPassword(t.Context(), loopback, address, password)
		got[errText(err)]++
	}
	return got
}

// TestThrottledLogins guesses at a user and at nobody, who are to look alike.
func TestThrottledLogins(t *testing.T) {
	s := partsServer(t)
	for address, failure := range map[string]string{"user@example.com": "wrong password", "nobody@example.com": "unknown address"} {
		if got := loginErrors(t, s, 40, address, "secret124"); got[failure] != 10 || got["throttled"] != 30 {
			t.Errorf("%s: got %v, want 10 of %q and 30 throttled", address, got, failure)
		}
		if got := s.throttle.wait(address, loopback); got != time.Second {
			t.Errorf("%s: got a wait of %v, want 1s: a try that is throttled is no failure", address, got)
		}
	}
	if got := loginErrors(t, s, 1, "uSER@EXAMPLE.com", "secret123"); got["throttled"] != 1 {
		t.Errorf("the right password, in another letter case: got %v, want it throttled", got)
	}
	if u, err := s.checkPassword(t.Context(), nthClient(1), "user@example.com", "secret123"); err != nil || u.id != "u1" {
		t.Errorf("another client: got %q and %v, want u1", u.id, err)
	}
}

// TestThrottledBeforeHashing holds every slot: whoever asks for one is told that the client is gone.
func TestThrottledBeforeHashing(t *testing.T) {
	s := partsServer(t)
	loginErrors(t, s, 10, "user@example.com", "secret124")
	s.passwords.slots = fullPasswords(1, 0).slots
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for address, want := range map[string]string{"user@example.com": "throttled", "admin@example.com": "context canceled"} {
		if _, err := s.checkPassword(gone, loopback, address, "secret123"); errText(err) != want {
			t.Errorf("%s: got %v, want %s", address, err, want)
		}
	}
}

// TestThrottledWhenAdmitted has forty guesses wait for one slot: ten are tried when it is given back.
func TestThrottledWhenAdmitted(t *testing.T) {
	for address, failure := range map[string]string{"user@example.com": "wrong password", "nobody@example.com": "unknown address"} {
		synctest.Test(t, func(t *testing.T) {
			s := partsServer(t)
			s.passwords.slots = fullPasswords(1, 0).slots
			errs := make(chan error, 40)
			for range cap(errs) {
				go func() {
					_, err := s.checkPassword(t.Context(), loopback, address, "secret124")
					errs <- err
				}()
			}
			synctest.Wait()
			if got := s.passwords.queued.Load(); got != 40 {
				t.Errorf("got %d who wait, want 40", got)
			}
			<-s.passwords.slots
			got := map[string]int{}
			for range cap(errs) {
				got[errText(<-errs)]++
			}
			if got[failure] != 10 || got["throttled"] != 30 {
				t.Errorf("%s: got %v, want 10 of %q and 30 throttled", address, got, failure)
			}
			if held := len(s.passwords.slots); held != 0 {
				t.Errorf("got %d slots held afterwards, want none", held)
			}
		})
	}
}

// TestThrottleCounts logs in after nine failures, in ways that are neither a failure nor a success.
func TestThrottleCounts(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range []struct {
		name, address string
		waiting       int // of the queue for a slot, of which there is none; -1 if there is one
		want          string
		failures      int
	}{
		{"the right password", "user@example.com", -1, "accepted", 0},
		{"a wrong password", "admin@example.com", -1, "wrong password", 10},
		{"an unknown address", "nobody@example.com", -1, "unknown address", 10},
		{"a stored hash that is none", "broken@example.com", -1, "password hash: not an argon2id hash of version 19", 9},
		{"hashing is full", "user@example.com", 64, "hashing is full", 9},
		{"the client is gone", "user@example.com", 0, "context canceled", 9},
	} {
		s := partsServer(t)
		if err := s.users.add(user{id: "u2", email: "broken@example.com", hash: newSecret("secret123")}); err != nil {
			t.Fatal(err)
		}
		for range 9 {
			s.throttle.failed(row.address, loopback)
		}
		if row.waiting >= 0 {
			s.passwords = fullPasswords(1, row.waiting)
		}
		_, err := s.checkPassword(gone, loopback, row.address, "secret123")
		failures := 0
		if r := s.throttle.find(guess{byBoth, row.address, clientOf(loopback)}, s.throttle.now()); r != nil {
			failures = r.failures
		}
		if errText(err) != row.want || failures != row.failures {
			t.Errorf("%s: got %s and %d failures, want %s and %d", row.name, errText(err), failures, row.want, row.failures)
		}
	}
}

// TestThrottleAtEpoch has a clock that nobody has set yet, or that was set wrong.
func TestThrottleAtEpoch(t *testing.T) {
	for _, start := range []time.Time{{}, time.Date(1901, 12, 13, 20, 45, 52, 0, time.UTC), time.Unix(-3600, 0), time.Unix(-30, 0), time.Unix(0, 0), time.Unix(30, 0)} {
		th, now := throttleAt(start)
		for range 10 {
			th.failed("a", loopback)
		}
		wantWait(t, th, start.String(), "a", loopback, time.Second)
		for n := range 89 {
			th.failed(fmt.Sprint(n), loopback)
		}
		wantWait(t, th, start.String()+", 99 failures", "new", loopback, 0)
		*now = start.Add(14 * time.Minute)
		th.failed("b", loopback)
		if got := th.wait("new", loopback); got < time.Minute || got > 3*time.Minute {
			t.Errorf("%v, 100 failures in 14 minutes: got a wait of %v, want one to 16 or 17 minutes after the first", start, got)
		}
		*now = start.Add(17 * time.Minute)
		wantWait(t, th, start.String()+", 17 minutes later", "new", loopback, 0)
	}
}

// TestInvalidClient is who has no address that could be read.
func TestInvalidClient(t *testing.T) {
	th, _ := throttleAt(noon)
	for range 10 {
		th.failed("a", loopback)
	}
	wantWait(t, th, "an invalid client at the address", "a", netip.Addr{}, 0)
	for range 10 {
		th.failed("b", netip.Addr{})
	}
	wantWait(t, th, "ten failures of an invalid client", "b", netip.Addr{}, time.Second)
}

// FuzzClientAddress reads X-Forwarded-For. Whatever it says, the client is the connection's, or an address that stands in it
// with nothing but our own proxies to its right.
func FuzzClientAddress(f *testing.F) {
	for _, header := range []string{"192.0.2.1", "x, 192.0.2.1", "192.0.2.1, 10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", ",,", "10.0.0.1,"} {
		f.Add(header)
	}
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}
	f.Fuzz(func(t *testing.T, header string) {
		r := &http.Request{RemoteAddr: "10.0.0.9:1", Header: http.Header{"X-Forwarded-For": {header}}}
		got := clientAddress(r, proxies)
		if got != plainAddress(got) {
			t.Errorf("%q: got %v, want it in its one spelling", header, got)
		}
		hops := strings.Split(header, ",")
		last, err := netip.ParseAddr(strings.TrimSpace(hops[len(hops)-1]))
		switch {
		case err != nil && got != netip.MustParseAddr("10.0.0.9"):
			t.Errorf("%q: got %v, want the connection's", header, got)
		case err == nil && !isProxy(plainAddress(last), proxies) && got != plainAddress(last):
			t.Errorf("%q: got %v, want the last, %v", header, got, last)
		}
		r.RemoteAddr = "192.0.2.9:1"
		if got := clientAddress(r, proxies); got != netip.MustParseAddr("192.0.2.9") {
			t.Errorf("%q: got %v from no proxy, want the connection's", header, got)
		}
	})
}
