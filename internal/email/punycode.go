package email

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// aLabel matches a Punycode label in lower case: the prefix, the ASCII characters and a hyphen if
// there are any, and the deltas that insert the other characters.
var aLabel = regexp.MustCompile(`^xn--(?:([0-9a-z-]+)-)?([0-9a-z]+)$`)

// decodeDomain returns a lower-case domain with its Punycode labels decoded. It leaves a label as
// it is if the label does not decode, or does not decode to lower case.
func decodeDomain(domain string) string {
	labels := strings.Split(domain, ".")
	for i, l := range labels {
		parts := aLabel.FindStringSubmatch(l)
		if parts == nil || len(l) > maxLabel {
			continue
		}
		if s := decode(parts[1], parts[2]); s != "" && strings.Map(lower, s) == s {
			labels[i] = s
		}
	}
	return strings.Join(labels, ".")
}

// decode is the Punycode decoder of RFC 3492 section 6.2. It inserts the characters of deltas into
// basic, or returns "" if deltas is invalid. No two inputs decode to the same string, because a
// delta has one spelling in digits, and insertions are in order of code point and position.
func decode(basic, deltas string) string {
	const digits = "abcdefghijklmnopqrstuvwxyz0123456789"
	const maxDelta = unicode.MaxRune * maxLabel // more is no character, and could overflow
	output := []rune(basic)
	var n, i, bias int64 = 128, 0, 72
	for deltas != "" {
		start, weight := i, int64(1)
		for k := int64(36); ; k += 36 {
			if deltas == "" {
				return ""
			}
			digit := int64(strings.IndexByte(digits, deltas[0]))
			deltas = deltas[1:]
			if i += digit * weight; i > maxDelta {
				return ""
			}
			threshold := min(max(k-bias, 1), 26)
			if digit < threshold {
				break
			}
			weight *= 36 - threshold
		}
		size := int64(len(output)) + 1
		bias = adapt(i-start, size, start == 0)
		n += i / size
		if !utf8.ValidRune(rune(n)) {
			return ""
		}
		output = slices.Insert(output, int(i%size), rune(n))
		i = i%size + 1
	}
	return string(output)
}

// adapt returns the bias for the next delta (RFC 3492 section 6.1).
func adapt(delta, size int64, first bool) (bias int64) {
	if first {
		delta /= 350 // 700 together with the next line
	}
	delta /= 2
	for delta += delta / size; delta > 455; delta /= 35 {
		bias += 36
	}
	return bias + 36*delta/(delta+38)
}
