// Package service builds the program in the parent of this module and runs it for a test, as an
// operator would.
//
// The packages that use it are direct children of the module's directory.
package service

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// timeout bounds the start and the shutdown, which may take 10 s to finish requests in flight.
const timeout = 20 * time.Second

// build builds the program once per test binary and returns its path. The program lies next to the
// test binary, in a directory that go test removes.
var build = sync.OnceValues(func() (string, error) {
	test, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(test), "jwt-auth-api")
	if out, err := exec.Command("go", "build", "-C", "../..", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// Start runs the program until the test ends and returns its base URL, as Run does.
func Start(tb testing.TB, env ...string) string {
	tb.Helper()
	return Run(tb, env...).URL
}

// A Process is the running program.
type Process struct {
	URL    string // base of the paths
	cmd    *exec.Cmd
	copied sync.WaitGroup // the log
	killed bool
}

// Run runs the program until the test ends. The program listens on a free port of 127.0.0.1 and has
// a random secret, an empty working directory and no other environment. Settings in env
// (NAME=value) override these; APP_LOG must stay text, since the log names the port. The log
// becomes part of the test's output.
//
// The test fails if the program does not start to listen, or does not exit with 0 after SIGTERM.
func Run(tb testing.TB, env ...string) *Process {
	tb.Helper()
	path, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	p := &Process{cmd: exec.Command(path)}
	p.cmd.Dir = tb.TempDir()
	p.cmd.Env = append([]string{"APP_ADDR=127.0.0.1:0", "APP_JWT_SECRET=" + rand.Text() + rand.Text()}, env...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	log := io.TeeReader(stderr, tb.Output())
	kill := time.AfterFunc(timeout, func() { p.cmd.Process.Kill() })
	addr := readAddr(log)
	kill.Stop()
	p.URL = "http://" + addr
	p.copied.Go(func() { io.Copy(io.Discard, log) })
	tb.Cleanup(func() {
		if p.killed {
			return
		}
		kill.Reset(timeout)
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.copied.Wait()
		if err := p.cmd.Wait(); err != nil {
			tb.Errorf("service: %v", err)
		}
		kill.Stop()
	})
	if addr == "" {
		tb.Fatal("service: did not start to listen")
	}
	return p
}

// PID returns the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the program at once, as a crash does. To start it again at the same URL, Run it with
// APP_ADDR.
func (p *Process) Kill() {
	p.killed = true
	p.cmd.Process.Kill()
	p.copied.Wait()
	p.cmd.Wait()
}

// readAddr reads the log as far as the line that names the listener's address. It returns "" if the
// log ends first.
func readAddr(log io.Reader) string {
	for lines := bufio.NewScanner(log); lines.Scan(); {
		if _, addr, ok := strings.Cut(lines.Text(), "msg=listening addr="); ok {
			return addr
		}
	}
	return ""
}
