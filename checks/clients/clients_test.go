// Package clients runs other people's clients against the service: clients that generators make of
// its description, and OAuth2 clients.
package clients

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"jwt-auth-api/checks/service"
)

// workspace starts the service and copies the description and the directory testdata/name to a
// temporary directory. It returns a function that runs a shell command there. The command finds the
// programs that Python and npm install in the directory, and the service's URL in SERVICE.
func workspace(t *testing.T, name string) func(command string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/"+name)); err != nil {
		t.Fatal(err)
	}
	description, err := os.ReadFile("../../docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "openapi.json"), description, 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "SERVICE="+service.Start(t),
		"PATH="+dir+"/venv/bin:"+dir+"/node_modules/.bin:"+os.Getenv("PATH"))
	return func(command string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, t.Output(), t.Output()
		start := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		t.Logf("%s: %v", command, time.Since(start).Round(time.Millisecond))
	}
}

func TestPython(t *testing.T) {
	t.Parallel()
	run := workspace(t, "python")
	run("python3 -m venv venv")
	run("pip install --quiet --no-deps --requirement requirements.txt")
	run("openapi-python-client generate --meta none --path openapi.json --output-path service_client")
	run("python generated.py")
	run("python oauth2.py")
	run("http --ignore-stdin --check-status $SERVICE/auth/login username=admin@example.com password=admin-password")
}

func TestGo(t *testing.T) {
	t.Parallel()
	run := workspace(t, "go")
	run("go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2" +
		" -generate types,client -package client -o client.gen.go openapi.json")
	run("go test")
}

func TestTypeScript(t *testing.T) {
	t.Parallel()
	run := workspace(t, "typescript")
	run("npm ci --no-audit --no-fund --ignore-scripts")
	run("openapi-typescript openapi.json --output api.d.ts")
	run("tsc")
	run("node client.js")
}

func TestOAuth2(t *testing.T) {
	base := service.Start(t)
	config := oauth2.Config{ClientID: "client", Endpoint: oauth2.Endpoint{TokenURL: base + "/auth/login"}}
	token, err := config.PasswordCredentialsToken(t.Context(), "admin@example.com", "admin-password")
	if err != nil {
		t.Fatal(err)
	}
	expired := *token
	expired.Expiry = time.Now().Add(-time.Minute)
	source := config.TokenSource(t.Context(), &expired)
	refreshed, err := source.Token()
	if err != nil || refreshed.AccessToken == token.AccessToken {
		t.Fatalf("refresh: got token %v, error %v, want another access token", refreshed, err)
	}
	resp, err := oauth2.NewClient(t.Context(), source).Get(base + "/me")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Errorf("/me: got %s, want 200", resp.Status)
	}
	_, err = config.PasswordCredentialsToken(t.Context(), "admin@example.com", "wrong-password")
	if rejected, ok := errors.AsType[*oauth2.RetrieveError](err); !ok || rejected.ErrorCode != "invalid_grant" {
		t.Errorf("wrong password: got %v, want the error code invalid_grant", err)
	}
}
