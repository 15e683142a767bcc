package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// A store is a user of a journal: counters by id, with their numbers of changes.
type store struct {
	*Journal
	pad       string // of the records of odd counters
	iterating func() // called during the iteration of a snapshot
	warnings  int

	mu       sync.Mutex
	counters map[int]int
}

func openStore(disk fileSystem, path string) (s *store, err error) {
	s = &store{counters: make(map[int]int)}
	s.Journal, err = open(disk, path, s.replay, s.snapshotOf, func(string, ...any) { s.warnings++ })
	return s, err
}

func mustOpen(t testing.TB, path string) *store {
	t.Helper()
	s, err := openStore(osFiles{}, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *store) replay(line []byte) error {
	for _, r := range strings.Split(string(line), `{"ID":`)[1:] {
		var id, n int
		if _, err := fmt.Sscanf(r, `%d,"N":%d`, &id, &n); err != nil {
			return err
		}
		s.counters[id] = max(s.counters[id], n)
	}
	return nil
}

func (s *store) snapshotOf() iter.Seq[[]byte] {
	s.mu.Lock()
	defer s.mu.Unlock()
	counters := maps.Clone(s.counters)
	return func(yield func([]byte) bool) {
		if s.iterating != nil {
			s.iterating()
		}
		for id, n := range counters {
			if !yield(s.record(id, n)) {
				return
			}
		}
	}
}

func (s *store) record(id, n int) []byte {
	return fmt.Appendf(nil, `{"ID":%d,"N":%d,"Pad":"%s"}`, id, n, s.pad[:len(s.pad)*(id%2)])
}

// add increments a counter and returns its new value, and what Append returned.
func (s *store) add(id int) (int, func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters[id]++
	return s.counters[id], s.Append(s.record(id, s.counters[id]))
}

// A testDisk calls before, if it is set, before each operation, which fails with its error. It does
// not sync, but keeps what a loss of power would undo.
type testDisk struct {
	before func(operation string) error
	files  []*testFile
	undo   func() // the last rename, until the directory is synced
}

type testFile struct {
	*os.File
	disk            *testDisk
	written, synced int64 // bytes
}

func (d *testDisk) do(operation string) error {
	if d.before == nil {
		return nil
	}
	return d.before(operation)
}

func (d *testDisk) openFile(name string, flag int, perm fs.FileMode) (file, error) {
	if err := d.do("open"); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, flag, perm)
	d.files = append(d.files, &testFile{File: f, disk: d})
	return d.files[len(d.files)-1], err
}

func (d *testDisk) rename(from, to string) error {
	if err := d.do("rename"); err != nil {
		return err
	}
	os.Remove(to + ".old")
	if os.Link(to, to+".old") == nil {
		d.undo = func() { os.Rename(to+".old", to) }
	}
	return os.Rename(from, to)
}

// Write writes half of p if it fails.
func (f *testFile) Write(p []byte) (int, error) {
	err := f.disk.do("write")
	if err != nil {
		p = p[:len(p)/2]
	}
	n, _ := f.File.Write(p)
	f.written += int64(n)
	return n, err
}

func (f *testFile) Sync() error {
	if err := f.disk.do("sync"); err != nil {
		return err
	}
	f.synced = f.written
	if f.written == 0 {
		f.disk.undo = nil // f is the directory
	}
	return nil
}

// losePower undoes what was not synced.
func (d *testDisk) losePower() {
	for _, f := range d.files {
		f.Truncate(f.synced)
	}
	if d.undo != nil {
		d.undo()
	}
}

const (
	mark    = `{"changes":[],"crc":"61f12734"}` + "\n" // ends a snapshot
	changes = `{"changes":[{"id":1},{"id":2}],"crc":"c8c646c0"}` + "\n"
)

// replayed opens a journal at path with a text. It returns the arguments of replay, the line and
// the bytes in a warning, and the error.
func replayed(path, text string) (records []string, warning, message string) {
	os.WriteFile(path, []byte(text), 0o600)
	j, err := open(&testDisk{}, path, func(b []byte) error {
		if string(b) == `["new"]` {
			return errors.New("unknown record")
		}
		records = append(records, string(b))
		return nil
	}, (&store{}).snapshotOf, func(msg string, args ...any) {
		if warning += msg; len(args) > 0 {
			warning = fmt.Sprint(args[1], " ", args[3])
		}
	})
	if err != nil {
		return records, warning, strings.ReplaceAll(err.Error(), path, "PATH")
	}
	j.Close()
	return records, warning, ""
}

const partial = "journal: incomplete copy, records may be missing"

var files = []struct{ name, text, records, warning, err string }{
	{"a snapshot of no records", mark, "[]", "", ""},
	{"a snapshot and a batch", changes + mark + changes, `[{"id":1},{"id":2}][][{"id":1},{"id":2}]`, "", ""},
	{"other line breaks", mark[:len(mark)-1] + "\r\n", "[]", "", ""},
	{"a checksum with a zero", mark + `{"changes":[0],"crc":"0bc8f5cd"}`, "[][0]", "", ""},
	{"a part of a line, then zero bytes", mark + changes[:20] + "\x00\x00", "[]", "2 22", ""},
	{"two invalid lines at the end", mark + "ab\nc\n", "[]", "2 3", ""},
	{"a checksum in upper case", mark + strings.Replace(changes, "c8c", "C8C", 1), "[]", "2 48", ""},
	{"only a checksum", mark + `,"crc":"00000000"}`, "[]", "2 18", ""},
	{"an error of replay", mark + mark + `{"changes":["new"],"crc":"8e5d35c4"}`, "[][]", "", "journal: line 3: unknown record"},
	{"an empty file", "", "", partial, ""},
	{"a part of the first line", mark[:9], "", "", "journal: PATH is not a journal"},
	{"a part of the end of a snapshot", changes + mark[:9], `[{"id":1},{"id":2}]`, "2 9" + partial, ""},
	{"no end of a snapshot", changes + changes, `[{"id":1},{"id":2}][{"id":1},{"id":2}]`, partial, ""},
	{"another file", "APP_ADDR=:80\n\n", "", "", "journal: PATH is not a journal"},
	{"two invalid lines", mark + "a\nb\n" + changes, "[]", "", "journal: line 2 is damaged"},
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "PATH")
	for _, row := range files {
		records, warning, err := replayed(path, row.text)
		if strings.Join(records, "") != row.records || warning != row.warning || err != row.err {
			t.Errorf("%s: got %s, a warning %q, an error %q, want %s, %q, %q", row.name, records, warning, err,
				row.records, row.warning, row.err)
		}
	}
}

// TestBytes cuts a journal at each byte of its last line, and changes each byte.
func TestBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "PATH")
	first := mark + changes + mark
	for n := range len(changes) {
		want, wantWarning := 3, fmt.Sprint("4 ", n)
		if n == 0 {
			wantWarning = ""
		} else if n == len(changes)-1 {
			want, wantWarning = 4, "" // only the line break is cut
		}
		records, warning, err := replayed(path, first+changes[:n])
		if len(records) != want || warning != wantWarning || err != "" {
			t.Errorf("cut after %d bytes: got %s, a warning %q, an error %q", n, records, warning, err)
		}
	}
	for n := range first + changes {
		changed := []byte(first + changes)
		changed[n] ^= 0x10
		records, warning, err := replayed(path, string(changed))
		damaged := fmt.Sprintf("journal: line %d is damaged", 1+strings.Count(first[:min(n, len(first))], "\n"))
		atEnd := n >= len(first)-1 // in the last line, or the line break before it
		if atEnd && (err != "" || warning == "" || len(records) < 2 || len(records) > 3) || !atEnd && err != damaged {
			t.Errorf("change of byte %d: got %s, a warning %q, an error %q", n, records, warning, err)
		}
	}
}

// FuzzRead checks that the text begins with what is replayed, encoded again.
func FuzzRead(f *testing.F) {
	for _, row := range files {
		f.Add(row.text)
	}
	path := filepath.Join(f.TempDir(), "PATH")
	f.Fuzz(func(t *testing.T, text string) {
		records, _, _ := replayed(path, text)
		var lines strings.Builder
		for _, r := range records {
			sum := crc32.Checksum([]byte(`{"changes":`+r), crc32.MakeTable(crc32.Castagnoli))
			fmt.Fprintf(&lines, `{"changes":%s,"crc":"%08x"}`+"\n", r, sum)
		}
		if !strings.HasPrefix(strings.ReplaceAll(text+"\n", "\r\n", "\n"), lines.String()) {
			t.Errorf("replayed %q of %q", records, text)
		}
	})
}

// TestFaults lets each operation fail in turn, or the machine lose power then, while changes are
// made, one of them in the middle of a compaction. Afterwards the journal has each change that was
// acknowledged, and no other than those that were made.
func TestFaults(t *testing.T) {
	fault := errors.New("fault")
	for _, power := range []bool{false, true} {
		for faulty, done := 1, false; !done; faulty++ {
			disk, n := new(testDisk), 0
			disk.before = func(string) error {
				if n++; n == faulty && power {
					disk.losePower()
				}
				if n == faulty || n > faulty && power {
					return fault
				}
				return nil
			}
			path := filepath.Join(t.TempDir(), "PATH")
			s, err := openStore(disk, path)
			acknowledged := make(map[int]int)
			var mu sync.Mutex
			change := func(id int) {
				mu.Lock()
				defer mu.Unlock()
				n, wait := s.add(id)
				if e := wait(); e == nil && err == nil {
					acknowledged[id] = n
				} else if err = e; !errors.Is(err, fault) {
					t.Errorf("power %t, operation %d: got %v after the fault", power, faulty, err)
				}
			}
			if err == nil {
				s.iterating = func() { change(10) }
				s.pad = strings.Repeat("x", minGrowth) // of counter 1
				for _, id := range []int{0, 1, 2, 0} {
					change(id)
					s.compaction.Wait()
				}
				if err = s.Close(); err != nil {
					change(0)
				}
			}
			if done = n < faulty; done != (err == nil && s.warnings == 0) || done && n < 20 {
				t.Errorf("power %t, operation %d of %d: got the error %v and %d warnings", power, faulty, n, err, s.warnings)
			}
			again := mustOpen(t, path)
			for id, made := range s.counters {
				if got := again.counters[id]; got < acknowledged[id] || got > made || len(again.counters) > len(s.counters) {
					t.Errorf("power %t, operation %d: got %d changes, acknowledged %d of %d", power, faulty, got, acknowledged[id], made)
				}
			}
		}
	}
}

// TestGroupCommit has nine goroutines wait while the disk syncs one batch.
func TestGroupCommit(t *testing.T) {
	syncs := 0
	syncing, release := make(chan bool), make(chan bool)
	disk := new(testDisk)
	s, err := openStore(disk, filepath.Join(t.TempDir(), "PATH"))
	if err != nil {
		t.Fatal(err)
	}
	disk.before = func(operation string) error {
		if operation == "sync" {
			if syncs++; syncs == 1 {
				close(syncing)
				<-release
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	for id := range 10 {
		_, wait := s.add(id)
		wg.Go(func() {
			if err := wait(); err != nil {
				t.Errorf("change %d: got the error %v", id, err)
			}
		})
		<-syncing
	}
	close(release)
	wg.Wait()
	if s.Close(); syncs != 2 {
		t.Errorf("got %d syncs for 10 changes, want 2", syncs)
	}
}

// TestCompactionFails lets the first of two compactions fail.
func TestCompactionFails(t *testing.T) {
	disk, writes := new(testDisk), 0
	path := filepath.Join(t.TempDir(), "PATH")
	s, err := openStore(disk, path)
	if err != nil {
		t.Fatal(err)
	}
	disk.before = func(operation string) error {
		if operation == "write" {
			writes++
		}
		if writes == 2 {
			return errors.New("no space")
		}
		return nil
	}
	s.pad = strings.Repeat("x", minGrowth+99)
	for lines := range 2 {
		_, wait := s.add(1)
		if err := wait(); err != nil {
			t.Error(err)
		}
		s.compaction.Wait()
		text, _ := os.ReadFile(path)
		_, err := os.Lstat(path + ".new")
		if n := bytes.Count(text, []byte("Pad")); n != 1 || s.warnings != 1 || s.tail != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("change %d: got %d records, %d warnings, a new file: %v, want 1, 1 and none", lines, n, s.warnings, err)
		}
	}
}

// TestCompaction writes a batch to a new journal, and measures the lines that the file then has.
func TestCompaction(t *testing.T) {
	const empty = len(mark) - 1
	const most = 2*len(mark) + minGrowth // the size of a line that starts no compaction
	for _, row := range []struct {
		name    string
		records []int // their sizes
		want    []int // the sizes of lines
	}{
		{"as large as the file may grow", []int{most - len(mark)}, []int{empty, empty, most - 1}},
		{"a byte larger", []int{most - len(mark) + 1}, []int{most, empty, empty}},
		{"a snapshot of more lines", []int{lineSize - 1, lineSize - 2, 1, minGrowth},
			[]int{empty + lineSize - 1, empty + lineSize, empty + minGrowth, empty, empty}},
	} {
		path := filepath.Join(t.TempDir(), "PATH")
		var records [][]byte
		j, err := open(&testDisk{}, path, nil, func() iter.Seq[[]byte] { return slices.Values(records) }, nil)
		if err != nil {
			t.Fatal(err)
		}
		var wait func() error
		for _, size := range row.records {
			records = append(records, bytes.Repeat([]byte("1"), size))
			wait = j.Append(records[len(records)-1])
		}
		err = wait()
		j.compaction.Wait()
		j.Close()
		text, _ := os.ReadFile(path)
		var got []int
		for line := range bytes.Lines(text) {
			got = append(got, len(line)-1)
		}
		if !slices.Equal(got, row.want) || j.room != 0 && j.room != len(text)+minGrowth || err != nil {
			t.Errorf("%s: got lines of %d bytes, room for %d, and %v, want %d", row.name, got, j.room, err, row.want)
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "PATH")
	os.WriteFile(path, []byte(mark), 0o644)
	os.WriteFile(path+".new", nil, 0o644)
	os.Mkdir(filepath.Join(dir, "dir"), 0o700)
	os.Symlink("PATH", filepath.Join(dir, "link"))
	os.Symlink("loop", filepath.Join(dir, "loop"))
	s := mustOpen(t, filepath.Join(dir, "link"))
	for _, name := range []string{"PATH", "PATH.lock"} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: got %v and %v, want a file of mode 0600", name, info.Mode(), err)
		}
	}
	runtime.GC() // it closes a file that is not reachable, which releases the lock
	const inUse = "journal: PATH is in use by another process"
	for _, row := range []struct{ name, path, want string }{
		{"in use", "PATH", inUse},
		{"in use by another name", "link", inUse},
		{"a directory that does not exist", "none/PATH", "journal: open none: no such file or directory"},
		{"a file for a directory", "PATH/PATH", "journal: open PATH/PATH.lock: not a directory"},
		{"a directory", "dir", "journal: dir is not a regular file"},
		{"a loop of links", "loop", "journal: loop is not a regular file"},
	} {
		_, err := Open(dir+"/"+row.path, nil, nil, nil)
		if got := strings.ReplaceAll(fmt.Sprint(err), dir+"/", ""); got != row.want {
			t.Errorf("%s: got the error %s, want %s", row.name, got, row.want)
		}
	}
	s.Close()
	mustOpen(t, path)
}

// TestClose closes a journal during a compaction. Close waits for its end, and nothing is written
// meanwhile.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, filepath.Join(t.TempDir(), "PATH"))
		s.pad = strings.Repeat("x", 2*minGrowth)
		ended := false
		s.iterating = func() {
			synctest.Wait()
			if _, wait := s.add(1); wait() != os.ErrClosed {
				t.Error("got another error after Close, want os.ErrClosed")
			}
			ended = true
		}
		s.add(1)
		if err := s.Close(); err != nil || !ended {
			t.Errorf("got the error %v, and %t, want the end of the compaction", err, ended)
		}
		if got := mustOpen(t, s.path).counters[1]; got != 1 {
			t.Errorf("got %d changes, want 1", got)
		}
	})
}

// TestConcurrent makes changes in eight goroutines, during compactions. A copy of the file has the
// changes that were acknowledged before.
func TestConcurrent(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "PATH"))
	s.pad = strings.Repeat("x", 10<<10)
	var acknowledged [8]atomic.Int64
	for id := range acknowledged {
		go func() {
			for range 200 {
				n, wait := s.add(id)
				if err := wait(); err != nil {
					t.Error(err)
				}
				acknowledged[id].Store(int64(n))
			}
		}()
	}
	for sum := int64(0); sum < 8*200; {
		var want [8]int64
		sum = 0
		for id := range want {
			want[id] = acknowledged[id].Load()
			sum += want[id]
		}
		text, _ := os.ReadFile(s.path)
		path := filepath.Join(t.TempDir(), "PATH")
		os.WriteFile(path, text, 0o600)
		backup := mustOpen(t, path)
		for id := range want {
			if got := int64(backup.counters[id]); got < want[id] {
				t.Errorf("counter %d: got %d changes in a copy, want at least %d", id, got, want[id])
			}
		}
	}
	_, err := Open(s.path, nil, nil, nil)
	if info, _ := os.Stat(s.path); info.Size() > 4<<20 || err == nil {
		t.Errorf("got %d bytes, and %v, want a compacted file that is in use", info.Size(), err)
	}
}
