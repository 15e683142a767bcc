//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package journal

import (
	"errors"
	"os"
)

// lockFile returns an error, since nothing would keep a second process from writing to the journal.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("requires flock, which this system lacks")
}
