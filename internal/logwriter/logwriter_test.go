package logwriter

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A recorder records each write with its time since start. A write takes some time.
type recorder struct {
	takes  time.Duration
	start  time.Time
	writes []string
}

func (r *recorder) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	r.writes = append(r.writes, fmt.Sprint(time.Since(r.start), " ", string(b)))
	<-time.After(r.takes)
	return len(b), nil
}

// TestWrite writes the lines a, b and so on at some times.
func TestWrite(t *testing.T) {
	for _, row := range []struct {
		name  string
		takes time.Duration // of a write
		at    []time.Duration
		want  []string
	}{
		{"lines within 10 ms", 0, []time.Duration{0, 0, 9}, []string{"10ms abc"}},
		{"lines after 10 ms", 0, []time.Duration{0, 5, 11, 16}, []string{"10ms ab", "21ms cd"}},
		{"a line during a write", 5, []time.Duration{0, 12}, []string{"10ms a", "22ms b"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			rec := &recorder{takes: row.takes * time.Millisecond, start: time.Now()}
			w := New(rec, nil)
			for i, at := range row.at {
				<-time.After(at*time.Millisecond - time.Since(rec.start))
				n, err := w.Write([]byte{'a' + byte(i)})
				if took := time.Since(rec.start) - at*time.Millisecond; n != 1 || err != nil || took != 0 {
					t.Errorf("%s: got %d and %v after %v, want 1 and no error at once", row.name, n, err, took)
				}
			}
			<-time.After(time.Minute)
			synctest.Wait()
			if !slices.Equal(rec.writes, row.want) {
				t.Errorf("%s: got %q, want %q", row.name, rec.writes, row.want)
			}
		})
	}
}

// TestDrop writes 4 MiB less 1 KiB, and then the last lines. The second time has its own report.
func TestDrop(t *testing.T) {
	line := strings.Repeat("x", 1023) + "\n"
	most := strings.Repeat(line, 4<<10-1)
	for _, row := range []struct {
		name string
		last []string
		want string
	}{
		{"4 MiB", []string{line}, line},
		{"a line more", []string{line, "\n"}, line + "dropped 1\n"},
		{"three lines more, and one that fits", []string{line + "\n", line, "\n", line}, line + "dropped 3\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			var w *Writer
			w = New(&out, func(n int) { fmt.Fprintf(w, "dropped %d\n", n) })
			for range 2 {
				for _, text := range append([]string{most}, row.last...) {
					if n, err := io.WriteString(w, text); n != len(text) || err != nil {
						t.Errorf("%s: got %d and %v, want %d and no error", row.name, n, err, len(text))
					}
				}
				w.Close()
				if got := out.String(); got != most+row.want {
					end := got[max(0, len(got)-40):]
					t.Errorf("%s: got %d bytes ending in %q, want %d", row.name, len(got), end, len(most+row.want))
				}
				out.Reset()
			}
		})
	}
}

func TestClose(t *testing.T) {
	for _, row := range []struct {
		name, pending string
		takes, end    time.Duration
		want          []string
	}{
		{"no line", "", 0, 0, nil},
		{"a slow writer", "a", 999 * time.Millisecond, 999 * time.Millisecond, []string{"0s a"}},
		{"a slower writer", "a", 1001 * time.Millisecond, time.Second, []string{"0s a"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			rec := &recorder{takes: row.takes, start: time.Now()}
			w := &Writer{w: rec, pending: []byte(row.pending)}
			w.Close()
			if took := time.Since(rec.start); took != row.end {
				t.Errorf("%s: Close returned after %v, want %v", row.name, took, row.end)
			}
			<-time.After(time.Minute)
			synctest.Wait()
			if !slices.Equal(rec.writes, row.want) {
				t.Errorf("%s: got %q, want %q", row.name, rec.writes, row.want)
			}
		})
	}
}

// TestConcurrent has eight goroutines write and flush. The lines of each are whole and in order.
func TestConcurrent(t *testing.T) {
	line := func(writer, n int) string { return fmt.Sprintf("%d %d %s\n", writer, n, strings.Repeat("x", n%200)) }
	var out bytes.Buffer
	w := New(&out, nil)
	var wg sync.WaitGroup
	for writer := range 8 {
		wg.Go(func() {
			for n := range 2000 {
				io.WriteString(w, line(writer, n))
				w.flush()
			}
		})
	}
	wg.Wait()
	w.writing.Lock() // A timer may flush nothing.
	defer w.writing.Unlock()
	var next [8]int // line of each
	for got := range strings.Lines(out.String()) {
		writer := int(got[0] - '0')
		if got != line(writer, next[writer]) {
			t.Fatalf("got the line %q after %d lines of each, want the next of one", got, next)
		}
		next[writer]++
	}
	if slices.Min(next[:]) != 2000 {
		t.Errorf("got %d lines, want 2000 of each", next)
	}
}
