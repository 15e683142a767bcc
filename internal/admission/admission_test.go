package admission

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// full returns a Queue with all slots taken and some tasks waiting.
func full(slots, waiting int) *Queue {
	q := New(slots)
	for range slots {
		q.slots <- struct{}{}
	}
	q.queued.Store(int64(waiting))
	return q
}

// TestAcquire measures how long a task waits when all slots are taken, by a clock that jumps ahead
// when all goroutines wait.
func TestAcquire(t *testing.T) {
	for _, row := range []struct {
		name           string
		slots, waiting int
		canceled       time.Duration // when the client leaves
		freed          time.Duration // when a slot is free
		want           error
		wait           time.Duration
	}{
		{"an empty queue", 1, 0, time.Hour, time.Hour, ErrBusy, 5 * time.Second},
		{"the last place with two slots", 2, 127, time.Hour, time.Hour, ErrBusy, 5 * time.Second},
		{"a full queue with two slots", 2, 128, time.Hour, time.Hour, ErrBusy, 0},
		{"a client that leaves", 1, 0, time.Second, time.Hour, ErrBusy, time.Second},
		{"a slot that is freed", 1, 63, time.Hour, 4 * time.Second, nil, 4 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), row.canceled)
			defer cancel()
			q, start := full(row.slots, row.waiting), time.Now()
			timer := time.AfterFunc(row.freed, func() { <-q.slots })
			defer timer.Stop()
			release, err := q.Acquire(ctx)
			if wait := time.Since(start); !errors.Is(err, row.want) || wait != row.wait {
				t.Errorf("%s: got %v after %v, want %v after %v", row.name, err, wait, row.want, row.wait)
			}
			if len(q.slots) != row.slots || q.queued.Load() != int64(row.waiting) {
				t.Errorf("%s: got %d slots taken and %d tasks waiting, want %d and %d", row.name,
					len(q.slots), q.queued.Load(), row.slots, row.waiting)
			}
			if err == nil {
				release()
				if len(q.slots) != row.slots-1 {
					t.Errorf("%s: got %d slots taken after release, want %d", row.name, len(q.slots), row.slots-1)
				}
			}
		})
	}
}

// TestAcquireFree acquires a free slot, which needs no place in the queue and no patience.
func TestAcquireFree(t *testing.T) {
	q := full(1, 64)
	<-q.slots
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.Acquire(ctx); err != nil || len(q.slots) != 1 {
		t.Errorf("got %v and %d slots taken, want no error and 1", err, len(q.slots))
	}
}
