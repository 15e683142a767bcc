// Package journal keeps records in a file, so that they outlive the process.
//
// A record is a JSON value. A program keeps its current records in memory, appends each change, and
// acknowledges the change when it is on disk. A line of the file is a batch of records:
//
//	{"changes":[{"id":1},{"id":2}],"crc":"c8c646c0"}
//
// The CRC-32C (Castagnoli) covers all bytes before `,"crc"`. A batch is written after the sync of
// the one before, so a crash can only leave the last line incomplete. That line holds nothing that
// was acknowledged, and is dropped. Any other invalid line is damage.
//
// The file begins with a snapshot of all records and the changes made meanwhile. An empty batch
// ends it, so that damage in the snapshot is never mistaken for an incomplete last line. A copy of
// the file, made at any moment, is a backup.
package journal

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const (
	prefix    = `{"changes":[`
	lineSize  = 1 << 20 // bytes of records after which a line of a snapshot ends
	minGrowth = 1 << 20 // bytes between compactions, in addition to the size of the file after the last one
)

// A Journal is an open file of records. It is safe for concurrent use.
type Journal struct {
	disk       fileSystem
	path       string
	dir        file // the directory of path
	snapshot   func() iter.Seq[[]byte]
	warn       func(msg string, args ...any)
	lock       *os.File       // holds the lock until it is closed or garbage collected
	compaction sync.WaitGroup // the goroutine that compacts the file, if there is one

	mu      sync.Mutex   // protects the fields below
	pending []byte       // records not yet written, a comma after each
	flush   func() error // writes the pending records at the first call, and returns the result

	writing sync.Mutex // held during a write; protects the fields below
	file    file
	room    int           // bytes until the next compaction
	tail    *bytes.Buffer // lines written since the compaction began, nil if none runs
	err     error         // the error after which no batch is written
}

// Open opens or creates the journal at path and locks it. It calls replay with the records of each
// line in order, a JSON array that may be empty and is valid during the call. Then it compacts the
// file. It calls warn if it drops an incomplete line, or if the end of the snapshot is missing, and
// later if a compaction fails. It returns an error if the file is damaged, is no regular file, or
// is in use by another process.
//
// A compaction calls snapshot for all current records. The journal holds no lock meanwhile. One
// goroutine compacts the file when it exceeds twice its size after the last compaction plus 1 MiB.
// A snapshot may include changes that are replayed again after it, so replay must ignore a
// record that is not newer than the current one.
func Open(path string, replay func(records []byte) error, snapshot func() iter.Seq[[]byte],
	warn func(msg string, args ...any)) (*Journal, error) {
	return open(osFiles{}, path, replay, snapshot, warn)
}

func open(disk fileSystem, path string, replay func([]byte) error, snapshot func() iter.Seq[[]byte],
	warn func(string, ...any)) (*Journal, error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a compaction would replace the link
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("journal: %s is not a regular file", path)
	}
	dir, err := disk.openFile(filepath.Dir(path), os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &Journal{disk: disk, path: path, dir: dir, snapshot: snapshot, warn: warn, tail: new(bytes.Buffer)}
	j.flush = sync.OnceValue(j.write)
	if j.lock, err = lockFile(path); err == nil {
		err = read(path, replay, warn)
	}
	if err == nil {
		err = j.compact()
	}
	if err != nil {
		dir.Close()
		j.lock.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return j, nil
}

// Append adds record, a JSON value without line breaks, to the pending batch. It never blocks on
// I/O. Records are replayed in the order of the calls, so the caller must hold the lock under which
// it applied the change.
//
// The caller must release the lock and call wait, which returns nil when the record is on disk. The
// first call of wait or Close writes the batch for all. After an error of a write, or of
// the rename that ends a compaction, what the disk holds is unknown. No further batch is written,
// wait returns the error for all of them, and the caller should end the process.
func (j *Journal) Append(record []byte) (wait func() error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending = append(append(j.pending, record...), ',')
	return j.flush
}

// Close writes the pending batch, waits for a running compaction and releases the lock. It returns
// the error of the write, or the first one before it.
func (j *Journal) Close() error {
	j.mu.Lock()
	flush := j.flush
	j.mu.Unlock()
	err := flush()
	j.writing.Lock()
	j.err = cmp.Or(j.err, os.ErrClosed)
	j.writing.Unlock()
	j.compaction.Wait()
	j.file.Close()
	j.dir.Close()
	j.lock.Close()
	return err
}

// write writes the pending records, and starts a compaction if the file has grown enough.
func (j *Journal) write() error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	records := j.pending
	j.pending, j.flush = nil, sync.OnceValue(j.write)
	j.mu.Unlock()
	if len(records) == 0 || j.err != nil {
		return j.err
	}
	line := format(records)
	_, err := j.file.Write(line)
	if j.err = cmp.Or(err, j.file.Sync()); j.err != nil {
		return j.err
	}
	j.room -= len(line)
	if j.tail != nil {
		j.tail.Write(line)
	} else if j.room < 0 {
		j.tail = new(bytes.Buffer)
		j.compaction.Go(j.recompact)
	}
	return nil
}

// recompact compacts the file in use. If that fails, as when the disk has no room for two files, it
// warns, and the file is compacted when it has grown by another MiB.
func (j *Journal) recompact() {
	err := j.compact()
	if err == nil {
		return
	}
	j.warn("journal: compaction failed", "error", err)
	j.writing.Lock()
	defer j.writing.Unlock()
	j.tail, j.room = nil, minGrowth
}

// compact replaces the file with one that has a snapshot and the lines written since the compaction
// began. It blocks writers only while it writes the last line of the snapshot and these lines.
func (j *Journal) compact() (err error) {
	path := j.path + ".new"
	os.Remove(path) // an existing file would keep its mode
	f, err := j.disk.openFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if f != nil {
			f.Close() // after an error the new file, otherwise the replaced one
		}
		if err != nil {
			os.Remove(path) // It may have filled the disk.
		}
	}()
	size := 0
	var records []byte
	for record := range j.snapshot() {
		records = append(append(records, record...), ',')
		if len(records) >= lineSize {
			n, err := f.Write(format(records))
			if err := cmp.Or(err, f.Sync()); err != nil { // small syncs delay writers less than a large one
				return err
			}
			size, records = size+n, records[:0]
		}
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	n, err := f.Write(slices.Concat(format(records), j.tail.Bytes(), format(nil)))
	if err := cmp.Or(err, f.Sync()); err != nil {
		return err
	}
	if err := cmp.Or(j.disk.rename(path, j.path), j.dir.Sync()); err != nil {
		j.err = cmp.Or(j.err, err) // Which file the directory has is unknown.
		return err
	}
	f, j.file = j.file, f
	j.tail, j.room = nil, size+n+minGrowth
	return nil
}

// read calls replay with the records of each valid line. It compares bytes and parses no JSON.
func read(path string, replay func(records []byte) error, warn func(string, ...any)) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	partial := true    // the end of the snapshot is missing
	torn, lost := 0, 0 // number of the first invalid line, bytes of all invalid lines
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, math.MaxInt)
	for n := 1; lines.Scan(); n++ {
		records, ok := parse(lines.Bytes())
		switch {
		case !ok:
			torn, lost = cmp.Or(torn, n), lost+len(lines.Bytes())
			continue
		case torn > 0:
			return fmt.Errorf("line %d is damaged", torn)
		}
		partial = partial && len(records) > len("[]")
		if err := replay(records); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	switch {
	case lines.Err() != nil:
		return lines.Err()
	case torn == 1: // Even an empty journal has a complete first line.
		return fmt.Errorf("%s is not a journal", path)
	case torn > 0:
		warn("journal: dropped an incomplete line", "line", torn, "bytes", lost)
	}
	if partial {
		warn("journal: incomplete copy, records may be missing")
	}
	return nil
}

// format returns the line of records.
func format(records []byte) []byte {
	body := slices.Concat([]byte(prefix), bytes.TrimSuffix(records, []byte(",")), []byte("]"))
	return append(body, checksum(body)+"\n"...)
}

// checksum returns the rest of a line that begins with body.
func checksum(body []byte) string {
	return fmt.Sprintf(`,"crc":"%08x"}`, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// parse returns the records of line as a JSON array.
func parse(line []byte) (records []byte, ok bool) {
	end := max(0, len(line)-len(checksum(nil)))
	if !bytes.HasPrefix(line[:end], []byte(prefix)) || string(line[end:]) != checksum(line[:end]) {
		return nil, false
	}
	return line[len(prefix)-1 : end], true
}

// A fileSystem is what a journal writes to. Tests inject errors.
type fileSystem interface {
	openFile(name string, flag int, perm fs.FileMode) (file, error)
	rename(from, to string) error
}

type file interface {
	io.WriteCloser
	Sync() error
}

type osFiles struct{}

func (osFiles) openFile(name string, flag int, perm fs.FileMode) (file, error) {
	return os.OpenFile(name, flag, perm)
}

func (osFiles) rename(from, to string) error { return os.Rename(from, to) }
