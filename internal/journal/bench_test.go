package journal

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkWait measures changes by a number of writers, without compactions and with one after the
// other, to a journal of 100,000 records.
func BenchmarkWait(b *testing.B) {
	for _, compactions := range []bool{false, true} {
		for _, writers := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("compactions=%t/writers=%d", compactions, writers), func(b *testing.B) {
				benchmarkWait(b, writers, compactions)
			})
		}
	}
}

func benchmarkWait(b *testing.B, writers int, compactions bool) {
	const records = 100_000 // of 350 bytes
	s := mustOpen(b, filepath.Join(b.TempDir(), "PATH"))
	s.pad = strings.Repeat("x", 650) // of every other record
	for id := range records {
		s.counters[id] = 1
	}
	s.tail = new(bytes.Buffer)
	if err := s.compact(); err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= b.N; i = int(next.Add(1)) {
				start := time.Now()
				_, wait := s.add(i % records)
				if err := wait(); err != nil {
					b.Error(err)
				}
				took[i-1] = time.Since(start)
			}
		})
	}
	for compactions && int(next.Load()) < b.N {
		s.writing.Lock()
		s.tail = new(bytes.Buffer)
		s.writing.Unlock()
		if err := s.compact(); err != nil {
			b.Error(err)
		}
	}
	wg.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
	b.ReportMetric(took[b.N/2].Seconds()*1e3, "p50-ms")
	b.ReportMetric(took[b.N*99/100].Seconds()*1e3, "p99-ms")
}
