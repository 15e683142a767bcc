package main

import (
	"cmp"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// How fast passwords may be guessed. NIST SP 800-63B-4 3.2.2 asks for no more than 100 failures in a row on one account;
// here they are followed by waits and not by a lock, since a lock is what somebody else could turn on the owner.
const (
	// A client has freeFailures in a row at one address. Each further try waits, firstWait and then twice as long each
	// time, up to longestWait.
	freeFailures = 10
	firstWait    = time.Second
	longestWait  = 5 * time.Minute

	// A client has clientFailures in any clientWindow, over all addresses.
	clientFailures = 100
	clientWindow   = 15 * time.Minute

	// After addressFailures in a row at one address, by whomever, a client that has failed there waits addressWait
	// between its tries. One that has not may try: it is how the owner gets in while others guess.
	addressFailures = 100
	addressWait     = 5 * time.Second

	// forgetAfter is how long failures are kept without another one.
	forgetAfter = 15 * time.Minute

	// maxRecords bounds what is kept. A record and its place in the map take about 80 bytes.
	maxRecords = 100_000
)

// A throttle counts the failures of those who log in, and says how long they have to wait before the next try. It is
// safe for concurrent use. A nil throttle lets everyone try at any time.
type throttle struct {
	now  func() time.Time
	seed maphash.Seed // makes keys that nobody outside can make collide

	mu      sync.Mutex // guards the records
	records map[uint64]*record
}

// A guess is what failures are counted by: an address and a client, or one of them alone.
type guess struct {
	by      counted
	address string // as addressKey returns it
	client  netip.Prefix
}

type counted byte

const (
	byBoth counted = iota
	byClient
	byAddress
)

// A record is what is known of a guess.
type record struct {
	failures int       // in a row, or of a client alone since it was last forgotten
	last     time.Time // when the last one was
	minutes  [minutesKept]uint8
}

// minutesKept is how many minutes touch a clientWindow at most.
const minutesKept = int(clientWindow/time.Minute) + 1

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, seed: maphash.MakeSeed(), records: make(map[uint64]*record)}
}

// A throttledError says how long a client has to wait before its next try.
type throttledError struct {
	wait time.Duration
}

func (e *throttledError) Error() string { return "throttled" }

// check returns a throttledError if a client may not try an address yet.
func (t *throttle) check(address string, client netip.Addr) error {
	if wait := t.wait(address, client); wait > 0 {
		return &throttledError{wait}
	}
	return nil
}

// clientOf returns what counts as one client: an IPv4 address, or the 64 bits of an IPv6 address that a provider gives
// to one customer at the least.
func clientOf(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // An address that is not valid is a client too.
	return prefix
}

// find returns the record of a guess, or nil if there is none that still counts.
func (t *throttle) find(g guess, now time.Time) *record {
	r := t.records[maphash.Comparable(t.seed, g)]
	if r == nil || now.Sub(r.last) >= forgetAfter {
		return nil
	}
	return r
}

// wait returns how long a client has to wait before it may try an address, 0 if it may now.
func (t *throttle) wait(address string, client netip.Addr) time.Duration {
	if t == nil {
		return 0
	}
	now, prefix := t.now(), clientOf(client)
	t.mu.Lock()
	defer t.mu.Unlock()
	wait := time.Duration(0)
	if r := t.find(guess{by: byClient, client: prefix}, now); r != nil {
		wait = r.windowWait(now)
	}
	pair := t.find(guess{byBoth, address, prefix}, now)
	if pair == nil {
		return wait
	}
	between := pair.backoff()
	if r := t.find(guess{by: byAddress, address: address}, now); r != nil && r.failures >= addressFailures {
		between = max(between, addressWait)
	}
	return max(wait, between-now.Sub(pair.last))
}

// backoff returns how long after the last failure the next try may come.
func (r *record) backoff() time.Duration {
	if r.failures < freeFailures {
		return 0
	}
	// 1 s doubled nine times is over five minutes, and the shift is bounded with it.
	return min(firstWait<<min(r.failures-freeFailures, 9), longestWait)
}

// windowWait returns how long it takes until fewer than clientFailures are in the window.
func (r *record) windowWait(now time.Time) time.Duration {
	this := minuteOf(now)
	failures := 0
	for m := this; m > this-int64(minutesKept); m-- {
		failures += r.inMinute(m)
		if failures >= clientFailures {
			// All of the minute m has left the window when that begins at the end of m, and the whole record is
			// forgotten in good time.
			return min(time.Unix((m+1)*60, 0).Add(clientWindow).Sub(now), r.last.Add(forgetAfter).Sub(now))
		}
	}
	return 0
}

func minuteOf(t time.Time) int64 { return t.Unix() / 60 }

// slot returns the place of a minute among minutesKept, also of one before 1970, where a clock that is not set may stand.
func slot(m int64) int { return (int(m%int64(minutesKept)) + minutesKept) % minutesKept }

// inMinute returns how many failures there were in a minute, one of the minutesKept last ones.
func (r *record) inMinute(m int64) int {
	if last := minuteOf(r.last); m > last || m <= last-int64(minutesKept) {
		return 0
	}
	return int(r.minutes[slot(m)])
}

// count notes a failure.
func (r *record) count(now time.Time) {
	this := minuteOf(now)
	for m := max(minuteOf(r.last)+1, this-int64(minutesKept)+1); m <= this; m++ {
		r.minutes[slot(m)] = 0
	}
	if n := &r.minutes[slot(this)]; *n < clientFailures {
		*n++
	}
	r.failures++
	r.last = now
}

// failed notes that a client has failed at an address.
func (t *throttle) failed(address string, client netip.Addr) {
	if t == nil {
		return
	}
	now, prefix := t.now(), clientOf(client)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range []guess{{byBoth, address, prefix}, {by: byClient, client: prefix}, {by: byAddress, address: address}} {
		r := t.find(g, now)
		if r == nil {
			t.makeRoom(now)
			r = &record{}
			t.records[maphash.Comparable(t.seed, g)] = r
		}
		r.count(now)
	}
}

// succeeded forgets the failures at an address, those of this client and those in a row. The client's own over all
// addresses stay: whoever has an account could otherwise clear them whenever he likes.
func (t *throttle) succeeded(address string, client netip.Addr) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.records, maphash.Comparable(t.seed, guess{byBoth, address, clientOf(client)}))
	delete(t.records, maphash.Comparable(t.seed, guess{by: byAddress, address: address}))
}

// makeRoom sees to it that one more record has a place. What is forgotten goes first, then what is least worth keeping:
// the fewest failures, and of these the oldest. Nobody can push out the record of the account that he attacks but by
// failing as often elsewhere, each time at the price of a hash. A hundredth goes at once, so that the sorting is rare.
func (t *throttle) makeRoom(now time.Time) {
	if len(t.records) < maxRecords {
		return
	}
	type kept struct {
		key uint64
		*record
	}
	all := make([]kept, 0, len(t.records))
	for key, r := range t.records {
		if now.Sub(r.last) >= forgetAfter {
			delete(t.records, key)
		} else {
			all = append(all, kept{key, r})
		}
	}
	slices.SortFunc(all, func(a, b kept) int {
		return cmp.Or(cmp.Compare(a.failures, b.failures), a.last.Compare(b.last))
	})
	for _, k := range all[:max(0, len(all)-maxRecords*99/100)] {
		delete(t.records, k.key)
	}
}

// clientAddress returns the address of the client: the connection's, or, where that is one of our proxies, what the
// proxies say. X-Forwarded-For is read from the right, where the nearest proxy writes, up to the first address that
// is not ours: whatever stands left of it, anybody may have written.
func clientAddress(r *http.Request, proxies []netip.Prefix) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	addr := plainAddress(peer.Addr())
	if !isProxy(addr, proxies) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for _, hop := range slices.Backward(hops) {
		next, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		addr = plainAddress(next)
		if !isProxy(addr, proxies) {
			break
		}
	}
	return addr
}

// plainAddress gives each address its one spelling: IPv4 as such, IPv6 without a zone.
func plainAddress(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

func isProxy(addr netip.Addr, proxies []netip.Prefix) bool {
	return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}
