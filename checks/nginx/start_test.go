package nginx

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

// mainConf includes nginx.conf as Debian's main configuration does. It has the certificate, and it
// writes only to the directory that nginx is started in.
const mainConf = `user USER; daemon off; pid nginx.pid; events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; scgi_temp_path scgi; uwsgi_temp_path uwsgi;
    ssl_certificate cert.pem; ssl_certificate_key key.pem;
    include site.conf;
}
`

// start runs nginx with nginx.conf in front of the service at addr until the test ends. The client
// that it returns connects to nginx from clientIP, for any host in the URL.
func start(t *testing.T, addr string) *http.Client {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	site, err := os.ReadFile("nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(nil) // Its certificate is valid for *.example.com.
	server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, dir, listener.(*net.TCPListener), fstest.MapFS{
		"app/index.html": {Data: []byte(page)},
		"cert.pem":       {Data: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})},
		"key.pem":        {Data: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})},
		"nginx.conf":     {Data: []byte(strings.Replace(mainConf, "USER", me.Username, 1))},
		"site.conf": {Data: []byte(strings.NewReplacer("listen 443", "listen "+listener.Addr().String(),
			"127.0.0.1:8000", addr, "/var/www", dir).Replace(string(site)))},
	})
	transport := server.Client().Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}}
		return dialer.DialContext(ctx, network, listener.Addr().String())
	}
	return server.Client()
}

// run runs nginx in dir with files until the test ends. nginx inherits the listener, as from an
// older nginx that it replaces, so a client can connect at once.
func run(t *testing.T, dir string, listener *net.TCPListener, files fs.FS) {
	t.Helper()
	if err := os.CopyFS(dir, files); err != nil {
		t.Fatal(err)
	}
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	cmd := exec.Command("nginx", "-p", dir, "-c", "nginx.conf", "-e", "stderr")
	cmd.Env = []string{"NGINX=3;"}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; install it with: apt-get install nginx-light", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("nginx: %v", err)
		}
	})
}
