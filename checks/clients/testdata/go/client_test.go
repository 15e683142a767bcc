// Package client uses the client that oapi-codegen generated.
package client

import (
	"context"
	"net/http"
	"os"
	"testing"
)

const (
	email    = "info@münchen.de"
	password = "secret123"
)

func Test(t *testing.T) {
	ctx := t.Context()
	client, err := NewClientWithResponses(os.Getenv("SERVICE"))
	if err != nil {
		t.Fatal(err)
	}
	registered, err := client.RegisterWithResponse(ctx, RegisterRequest{Email: email, Name: "Grete", Password: password})
	if err != nil || registered.JSON201 == nil {
		t.Fatalf("register: got %v, %v", registered, err)
	}
	loggedIn, err := client.LoginWithFormdataBodyWithResponse(ctx, LoginForm{Username: email, Password: password})
	if err != nil || loggedIn.JSON200 == nil {
		t.Fatalf("login: got %v, %v", loggedIn, err)
	}
	refreshed, err := client.RefreshWithResponse(ctx, RefreshRequest{RefreshToken: loggedIn.JSON200.RefreshToken})
	if err != nil || refreshed.JSON200 == nil {
		t.Fatalf("refresh: got %v, %v", refreshed, err)
	}
	for _, pair := range []*TokenPair{registered.JSON201, loggedIn.JSON200, refreshed.JSON200} {
		bearer := func(_ context.Context, req *http.Request) error {
			req.Header.Set("Authorization", "Bearer "+pair.AccessToken)
			return nil
		}
		me, err := client.MeWithResponse(ctx, bearer)
		if err != nil || me.JSON200 == nil || me.JSON200.Email != email {
			t.Errorf("me: got %v, %v", me, err)
		}
	}
	wrong, err := client.LoginWithFormdataBodyWithResponse(ctx, LoginForm{Username: email, Password: "wrong-password"})
	if err != nil || wrong.JSON401 == nil || wrong.JSON401.Detail != "incorrect email or password" {
		t.Errorf("login with a wrong password: got %v, %v", wrong, err)
	}
}
