// Package phc parses and formats argon2id hashes in the PHC string format:
//
//	$argon2id$v=19$m=65536,t=3,p=4$salt$hash
//
// It bounds what a hash costs to verify before any memory is allocated. Package argon2 panics if t
// or p is 0, takes p modulo 256, raises m silently, and every password matches an empty hash. A
// string that is accepted formats to itself.
package phc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Params are the cost parameters of a hash (RFC 9106 section 3.1).
type Params struct {
	Memory  uint32 // m, in KiB
	Time    uint32 // t, in passes
	Threads uint8  // p, in lanes
}

func (p Params) String() string { return fmt.Sprintf("m=%d,t=%d,p=%d", p.Memory, p.Time, p.Threads) }

// A Hash is a parsed hash.
type Hash struct {
	Params
	Salt []byte
	Sum  []byte
}

// Bounds of an accepted hash. They keep a stored hash from choosing its cost.
const (
	maxMemory  = 256 << 10 // KiB
	maxTime    = 10        // passes
	maxThreads = 16        // lanes

	minSalt, maxSalt = 8, 64  // bytes
	minSum, maxSum   = 16, 64 // bytes
	maxLen           = 512    // bytes, of the string
)

// ParseParams parses parameters such as m=65536,t=3,p=4. It accepts no other spelling.
func ParseParams(text string) (Params, error) {
	var p Params
	fmt.Sscanf(text, "m=%d,t=%d,p=%d", &p.Memory, &p.Time, &p.Threads) // The comparison below finds errors.
	minMemory := 8 * uint32(p.Threads)                                 // RFC 9106 section 3.1
	switch {
	case p.String() != text:
		return Params{}, errors.New("must look like m=65536,t=3,p=4")
	case p.Threads < 1 || p.Threads > maxThreads:
		return Params{}, fmt.Errorf("p must be 1 to %d", maxThreads)
	case p.Time < 1 || p.Time > maxTime:
		return Params{}, fmt.Errorf("t must be 1 to %d", maxTime)
	case p.Memory < minMemory || p.Memory > maxMemory:
		return Params{}, fmt.Errorf("m must be %d to %d", minMemory, maxMemory)
	}
	return p, nil
}

const prefix = "$argon2id$v=19$" // version 1.3 of argon2 (RFC 9106 section 3.1)

func (h Hash) String() string {
	b64 := base64.RawStdEncoding
	return prefix + h.Params.String() + "$" + b64.EncodeToString(h.Salt) + "$" + b64.EncodeToString(h.Sum)
}

// Parse parses an encoded hash.
func Parse(encoded string) (Hash, error) {
	rest, ok := strings.CutPrefix(encoded, prefix)
	fields := strings.Split(rest, "$")
	if !ok || len(encoded) > maxLen || len(fields) != 3 {
		return Hash{}, errors.New("password hash: must be argon2id, version 19")
	}
	params, err := ParseParams(fields[0])
	if err != nil {
		return Hash{}, fmt.Errorf("password hash: %w", err)
	}
	h := Hash{Params: params}
	h.Salt, _ = base64.RawStdEncoding.DecodeString(fields[1]) // The last case below finds errors.
	h.Sum, _ = base64.RawStdEncoding.DecodeString(fields[2])
	switch {
	case len(h.Salt) < minSalt || len(h.Salt) > maxSalt:
		return Hash{}, fmt.Errorf("password hash: salt must be %d to %d bytes", minSalt, maxSalt)
	case len(h.Sum) < minSum || len(h.Sum) > maxSum:
		return Hash{}, fmt.Errorf("password hash: hash must be %d to %d bytes", minSum, maxSum)
	case h.String() != encoded: // line breaks, which package base64 skips, and stray bits
		return Hash{}, errors.New("password hash: must be canonical base64")
	}
	return h, nil
}
