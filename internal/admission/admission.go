// Package admission bounds how many expensive tasks run at once. A task that must wait does so
// briefly, in a short queue, and never starts after its client has left.
package admission

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

const (
	maxWait  = 5 * time.Second
	maxQueue = 64 // waiting tasks per running task
)

// ErrBusy means that too many tasks are waiting, or that a task has waited too long.
var ErrBusy = errors.New("busy, try again")

// A Queue admits tasks. It is safe for concurrent use.
type Queue struct {
	slots  chan struct{} // holds an element for each running task
	queued atomic.Int64  // waiting tasks
}

// New returns a Queue that admits n tasks at once.
func New(n int) *Queue { return &Queue{slots: make(chan struct{}, n)} }

// Acquire waits until a task may run. The caller calls release after it. Acquire returns ErrBusy if
// the queue is full, the wait is too long, or ctx is done.
func (q *Queue) Acquire(ctx context.Context) (release func(), err error) {
	release = func() { <-q.slots }
	select {
	case q.slots <- struct{}{}:
		return release, nil
	default:
	}
	defer q.queued.Add(-1)
	if q.queued.Add(1) > int64(maxQueue*cap(q.slots)) {
		return nil, ErrBusy
	}
	timeout := time.NewTimer(maxWait)
	defer timeout.Stop()
	select {
	case q.slots <- struct{}{}:
		return release, nil
	case <-timeout.C:
	case <-ctx.Done():
	}
	return nil, ErrBusy
}
