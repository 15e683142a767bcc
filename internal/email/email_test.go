package email

import (
	"net/mail"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"jwt-auth-api/internal/testfile"
)

// A row of testdata/addresses.json wants the canonical address or the sentence that rejects it.
type row struct{ Name, Input, Want string }

func TestParse(t *testing.T) {
	for _, row := range testfile.Read[[]row](t, "addresses.json") {
		got, err := Parse(row.Input)
		if err != nil {
			got += err.Error()
		}
		if got != row.Want {
			t.Errorf("%s: got %q and %v, want %q", row.Name, got, err, row.Want)
		}
	}
}

// TestAtom checks which printable characters of ASCII a local part may have.
func TestAtom(t *testing.T) {
	for c := ' '; c <= '~'; c++ {
		_, err := Parse("us" + string(c) + "er@example.com")
		want := !strings.ContainsRune(` "(),:;<>@[\]`, c)
		if got := err == nil; got != want {
			t.Errorf("%q: got it accepted: %t, want %t", c, got, want)
		}
	}
}

func TestKey(t *testing.T) {
	for _, row := range []struct {
		name, a, b string
		want       bool
	}{
		{"letter case", "User@Example.COM", "uSER@eXAMPLE.com", true},
		{"spaces and tabs around one", "a@x.com", " \ta@x.com\t ", true},
		{"a line feed after one", "a@x.com", "a@x.com\n", false},
		{"a space within one", "ab@x.com", "a b@x.com", false},
		{"Punycode", "a@MÜNCHEN.example", "a@XN--mnchen-3YA.example", true},
		{"Punycode in the last label", "a@x.测试", "a@x.xn--0zwm56d", true},
		{"Punycode of another label", "a@münchen.example", "a@xn--mnchen-3yb.example", false},
		{"Punycode in the local part", "münchen@x.com", "xn--mnchen-3ya@x.com", false},
		{"Punycode of a final sigma and a capital sigma", "a@xn--3xa.gr", "a@Σ.gr", true},
		{"Punycode of upper case", "a@mÜ.com", "a@xn--m-kfa.com", false},
		{"Punycode that does not decode", "a@xn--mnchen-3y.com", "a@XN--MNCHEN-3Y.com", true},
		{"Punycode of ASCII", "a@abc.com", "a@xn--abc-.com", false},
		{"both sigmas and the capital", "ΣΑΣ@x.gr", "σας@x.gr", true},
		{"an inner period", "a.b@x.com", "ab@x.com", false},
		{"a tag", "a+b@x.com", "a@x.com", false},
		{"an accent", "e@x.com", "é@x.com", false},
		{"a sharp s and two s", "ß@x.de", "ss@x.de", false},
		{"a dotted I", "u@git.com", "u@g\u0130t.com", false},
		{"no domain", "a@b", "ab@", false},
	} {
		a, b := Key(row.a), Key(row.b)
		if got := a == b; got != row.want {
			t.Errorf("%s: got keys %q and %q, want them equal: %t", row.name, a, b, row.want)
		}
	}
	if got := Key(" UsEr@Example.COM\t"); got != "user@example.com" {
		t.Errorf("got %q, want lower case in ASCII", got)
	}
}

// TestEveryRune checks that runes have one fold if and only if they differ only in letter case, and
// that lower keeps the fold and is idempotent.
func TestEveryRune(t *testing.T) {
	exceptions := map[rune]rune{'\u0130': '\u0130', '\u017f': 's'}
	for r := range unicode.MaxRune + 1 {
		folded := fold(r)
		if next := fold(unicode.SimpleFold(r)); folded != next || !strings.EqualFold(string(folded), string(r)) {
			t.Errorf("%U: got fold %U, and %U for its other case, want one of the same letter", r, folded, next)
		}
		got, want := lower(r), unicode.ToLower(r)
		if exception, ok := exceptions[r]; ok {
			want = exception
		}
		if got != want || lower(got) != got || fold(got) != folded {
			t.Errorf("%U: got lower case %U, want %U, with the same fold", r, got, want)
		}
	}
}

// encode is the encoder of RFC 3492 section 6.3.
func encode(s string) string {
	var output []byte
	runes := []rune(s)
	for _, r := range runes {
		if r < utf8.RuneSelf {
			output = append(output, byte(r))
		}
	}
	basic := len(output)
	if basic > 0 {
		output = append(output, '-')
	}
	n, delta, bias := 128, 0, 72
	for handled := basic; handled < len(runes); n++ {
		next := unicode.MaxRune
		for _, r := range runes {
			if int(r) >= n {
				next = min(next, r)
			}
		}
		delta += (int(next) - n) * (handled + 1)
		n = int(next)
		for _, r := range runes {
			if int(r) == n {
				output = appendDelta(output, delta, bias)
				bias = int(adapt(int64(delta), int64(handled+1), handled == basic))
				delta = 0
				handled++
			} else if int(r) < n {
				delta++
			}
		}
		delta++
	}
	return string(output)
}

// appendDelta appends a delta as a variable-length integer.
func appendDelta(output []byte, delta, bias int) []byte {
	const digits = "abcdefghijklmnopqrstuvwxyz0123456789"
	for k := 36; ; k += 36 {
		threshold := min(max(k-bias, 1), 26)
		if delta < threshold {
			return append(output, digits[delta])
		}
		output = append(output, digits[threshold+(delta-threshold)%(36-threshold)])
		delta = (delta - threshold) / (36 - threshold)
	}
}

// FuzzAddress checks that Parse is idempotent, agrees with Key, accepts nothing that net/mail
// rejects, and accepts each domain in one Punycode spelling.
func FuzzAddress(f *testing.F) {
	for _, row := range testfile.Read[[]row](f, "addresses.json") {
		f.Add(row.Input)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key := Key(text)
		if again := Key(key); again != key {
			t.Errorf("%q: got key %q, and %q of that, want one", text, key, again)
		}
		got, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(got); again != got || err != nil {
			t.Errorf("%q: got %q, and %q (%v) of that, want one", text, got, again, err)
		}
		if Key(got) != key {
			t.Errorf("%q: got key %q, and %q for %q, want one", text, key, Key(got), got)
		}
		local, domain, _ := strings.Cut(got, "@")
		if !strings.HasPrefix(strings.Trim(text, " \t"), local+"@") || len(got) > 254 || len(local) > 64 {
			t.Errorf("%q: got %q, want the local part as given, and at most 254 octets", text, got)
		}
		if strings.ContainsFunc(got, isForbidden) || !utf8.ValidString(got) {
			t.Errorf("%q: got %q, want no invisible or special character", text, got)
		}
		if parsed, err := mail.ParseAddress(got); err != nil || parsed.Address != got || parsed.Name != "" {
			t.Errorf("%q: got %v and %v from net/mail, want %s", text, parsed, err, got)
		}
		checkPunycode(t, text, local, domain)
	})
}

// checkPunycode checks that an accepted Punycode label is the encoding of what it was decoded to,
// and that the encoding of a whole domain is accepted as the same address.
func checkPunycode(t *testing.T, text, local, domain string) {
	_, given, _ := strings.Cut(strings.TrimRight(text, " \t"), "@")
	givenLabels, labels, tooLong := strings.Split(given, "."), strings.Split(domain, "."), false
	for i, label := range labels {
		if strings.ContainsFunc(label, func(r rune) bool { return r > unicode.MaxASCII }) {
			labels[i] = "xn--" + encode(label)
		}
		tooLong = tooLong || len(labels[i]) > 63
		if g := strings.Map(lower, givenLabels[i]); strings.HasPrefix(g, "xn--") && g != labels[i] {
			t.Errorf("%q: got label %q, want it rejected, because %q has the encoding %q", text, g, label, labels[i])
		}
	}
	encoded, want := local+"@"+strings.Join(labels, "."), local+"@"+domain
	if got, err := Parse(encoded); !tooLong && len(encoded) <= 254 && (got != want || err != nil) {
		t.Errorf("%q: got %q and %v, want %q", encoded, got, err, want)
	}
}

// isForbidden reports whether r is in no address, or in a quoted local part only.
func isForbidden(r rune) bool {
	return strings.ContainsRune("\"(),:;<>[\\]\uFFFD", r) || unicode.IsSpace(r) ||
		unicode.In(r, unicode.C, unicode.Z, unicode.Other_Default_Ignorable_Code_Point)
}
