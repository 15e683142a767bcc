// Package throttle limits how fast clients can guess passwords.
//
// NIST SP 800-63B-4 section 3.2.2 allows at most 100 consecutive failures on an account. A lock
// would let an attacker lock out the owner. Here, failures lead to waits instead:
//
//   - A client may fail 10 times in a row on an account. After that it waits before each attempt,
//     1 second at first, twice as long after each failure, and 5 minutes at most.
//   - After 100 failures in a row on an account, by any clients, each client that has failed there
//     waits 5 seconds between its attempts. The owner's client has not, and is not delayed.
//   - A client may fail 50 times over all accounts, and once more every 18 seconds.
//
// Failures are forgotten after 15 minutes without another one.
package throttle

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	freeFailures    = 10 // of a client on an account
	firstWait       = time.Second
	longestWait     = 5 * time.Minute
	accountFailures = 100
	accountWait     = 5 * time.Second
	forgetAfter     = 15 * time.Minute
	clientFailures  = 50
	refill          = forgetAfter / clientFailures // the time in which a client gains a failure
	maxRecords      = 100_000                      // of up to 150 bytes each, with the place in the map
)

// A Throttle counts failures and decides when the next attempt is due. It is safe for concurrent
// use. A nil *Throttle allows everything.
type Throttle struct {
	now func() time.Time

	mu      sync.Mutex // protects the field below
	records map[key]record
}

// A key is the hash of what failures are counted by: an account and a client, or one of them. It
// bounds the memory that an account name takes.
type key [sha256.Size]byte

// A record is what is known of a key. The failures of a client over all accounts are a token bucket
// that is full 15 minutes after the time at, and was empty then if it has been refilled ever since.
type record struct {
	failures int       // since they were last forgotten or cleared
	at       time.Time // of the last failure, or for the key of a client when its bucket was empty
}

// New returns a Throttle that uses the clock now.
func New(now func() time.Time) *Throttle {
	return &Throttle{now: now, records: make(map[key]record)}
}

// An Error reports how long a client must wait before its next attempt.
type Error struct{ RetryAfter time.Duration }

func (e *Error) Error() string { return "too many attempts" }

// Check returns an *Error if client must wait before it attempts to log in to account.
func (t *Throttle) Check(account string, client netip.Addr) error {
	if t == nil {
		return nil
	}
	pairKey, accountKey, clientKey := keys(account, client)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	pair := t.find(pairKey, now)
	interval := backoff(pair.failures)
	if t.find(accountKey, now).failures >= accountFailures {
		interval = max(interval, accountWait)
	}
	wait := max(interval-now.Sub(pair.at), refill-now.Sub(t.find(clientKey, now).at))
	if wait <= 0 {
		return nil
	}
	return &Error{wait}
}

// Failed records a failed attempt of client to log in to account.
func (t *Throttle) Failed(account string, client netip.Addr) {
	if t == nil {
		return
	}
	pairKey, accountKey, clientKey := keys(account, client)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if len(t.records) > maxRecords-3 {
		t.evict(now)
	}
	for _, k := range []key{pairKey, accountKey, clientKey} {
		r := t.find(k, now)
		r.failures++
		if r.at = r.at.Add(refill); k != clientKey || r.at.After(now) {
			r.at = now // a bucket never holds fewer than 0 tokens
		}
		t.records[k] = r
	}
}

// Succeeded clears the failures of client on account, and those on account by any clients. It keeps
// the client's failures over all accounts, which an attacker could clear with their own account.
func (t *Throttle) Succeeded(account string, client netip.Addr) {
	if t == nil {
		return
	}
	pairKey, accountKey, _ := keys(account, client)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.records, pairKey)
	delete(t.records, accountKey)
}

// keys returns the keys of account and client together, of account, and of client. A client is an
// IPv4 address or an IPv6 /64, the least that a provider assigns to a customer.
func keys(account string, client netip.Addr) (pair, ofAccount, ofClient key) {
	client = client.Unmap()
	prefix, _ := client.Prefix(min(client.BitLen(), 64)) // "invalid Prefix" is a client too
	hash := func(s string) key { return sha256.Sum256([]byte(s)) }
	return hash(prefix.String() + "\x00" + account), hash("\x00" + account), hash(prefix.String())
}

// find returns the record of k, or an empty one if k has none or it has expired.
func (t *Throttle) find(k key, now time.Time) record {
	if r, ok := t.records[k]; ok && !r.expired(now) {
		return r
	}
	return record{at: now.Add(-forgetAfter)}
}

// expired reports whether r no longer counts. A record from the future does not count, so that
// setting the clock back locks out no client.
func (r record) expired(now time.Time) bool {
	return r.at.After(now) || now.Sub(r.at) >= forgetAfter
}

// backoff returns the time from the last of a number of failures to the next attempt.
func backoff(failures int) time.Duration {
	if failures < freeFailures {
		return 0
	}
	return min(firstWait<<min(failures-freeFailures, 9), longestWait) // 2^9 s is over 5 minutes
}

// evict deletes the records that are expired, and then those with the fewest and oldest failures,
// until 99% of maxRecords are left. So an attacker can only evict the record of the account under
// attack by failing as often on others.
func (t *Throttle) evict(now time.Time) {
	maps.DeleteFunc(t.records, func(_ key, r record) bool { return r.expired(now) })
	ordered := slices.SortedFunc(maps.Keys(t.records), func(a, b key) int {
		x, y := t.records[a], t.records[b]
		return cmp.Or(cmp.Compare(x.failures, y.failures), x.at.Compare(y.at))
	})
	for _, k := range ordered[:max(0, len(ordered)-maxRecords*99/100)] {
		delete(t.records, k)
	}
}
