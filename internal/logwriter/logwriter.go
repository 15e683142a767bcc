// Package logwriter has a buffered writer for logs. A slow log never delays the program, and many
// lines become one system call.
package logwriter

import (
	"io"
	"sync"
	"time"
)

const (
	flushDelay = 10 * time.Millisecond
	maxPending = 4 << 20 // bytes
	closeWait  = time.Second
)

// A Writer writes each line within 10 ms, unless the underlying writer is slower. It drops lines
// when more than 4 MiB are pending. It is safe for concurrent use.
type Writer struct {
	w       io.Writer
	onDrop  func(lines int)
	writing sync.Mutex // held during a write to w

	mu      sync.Mutex // protects the fields below
	pending []byte     // lines not yet written
	dropped int        // lines
}

// New returns a Writer that writes to w. It calls onDrop after it dropped lines.
func New(w io.Writer, onDrop func(lines int)) *Writer { return &Writer{w: w, onDrop: onDrop} }

// Write buffers a line. It never fails.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending)+len(line) > maxPending {
		w.dropped++
		return len(line), nil
	}
	if len(w.pending) == 0 {
		time.AfterFunc(flushDelay, w.flush)
	}
	w.pending = append(w.pending, line...)
	return len(line), nil
}

// flush writes the pending lines. It ignores errors, which only the log could report.
func (w *Writer) flush() {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	lines, dropped := w.pending, w.dropped
	w.pending, w.dropped = nil, 0
	w.mu.Unlock()
	w.w.Write(lines)
	if dropped > 0 {
		w.onDrop(dropped)
	}
}

// Close writes the pending lines. It waits at most a second, as the underlying writer may block.
func (w *Writer) Close() {
	done := make(chan struct{})
	go func() {
		w.flush()
		w.flush() // what onDrop logged
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeWait):
	}
}
