package etcd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Codes of gRPC, which unlike statuses are the same in all versions of etcd.
const (
	canceled           = 1 // the endpoint is being stopped
	invalidArgument    = 3
	failedPrecondition = 9
	outOfRange         = 11
	unauthenticated    = 16
)

var errTimeout = errors.New("no response in time")

// An Error is a response with a status other than 200. A full database has status 429 and code 8.
type Error struct {
	Status  int    `json:"-"`
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s (status %d, code %d)", cmp.Or(e.Message, http.StatusText(e.Status)), e.Status, e.Code)
}

// A request has the fields of all requests, and of their parts. The gateway ignores a field that
// the request does not have, and takes a missing one as 0.
type request struct {
	Key           []byte `json:"key,omitempty"`
	End           []byte `json:"range_end,omitempty"`
	Value         []byte `json:"value,omitempty"`
	Revision      int64  `json:"revision,string,omitempty"`
	StartRevision int64  `json:"start_revision,string,omitempty"`
	ModRevision   int64  `json:"mod_revision,string,omitempty"`
	Target        string `json:"target,omitempty"`
	Name          string `json:"name,omitempty"`
	Password      string `json:"password,omitempty"`

	Compare []request `json:"compare,omitempty"`
	Success []request `json:"success,omitempty"`
	Put     *request  `json:"request_put,omitempty"`
	Delete  *request  `json:"request_delete_range,omitempty"`
	Create  *request  `json:"create_request,omitempty"`
}

// A response has the fields of all responses. The gateway leaves out those that are 0 or false.
type response struct {
	Header struct {
		ClusterID string `json:"cluster_id"`
		Revision  int64  `json:"revision,string"`
	} `json:"header"`
	KVs       []KV   `json:"kvs"`
	Succeeded bool   `json:"succeeded"`
	Token     string `json:"token"`

	Created         bool   `json:"created"`
	Canceled        bool   `json:"canceled"`
	CancelReason    string `json:"cancel_reason"`
	CompactRevision int64  `json:"compact_revision,string"`
	Events          []struct{ KV KV }
}

// unary returns the response to a request that has only one. The response includes every change
// acknowledged before, so an earlier revision than the latest seen means a restored cluster.
func (c *Client) unary(ctx context.Context, timeout time.Duration, path string, req request) (resp response, err error) {
	latest := c.revision.Load()
	err = c.call(ctx, timeout, path, req, func(r response) { resp = r })
	switch {
	case err != nil:
		return resp, err
	case resp.Header.Revision < latest:
		c.cluster.Store("") // No response has this ID, so all others fail too.
		return resp, ErrCluster
	}
	c.revision.CompareAndSwap(latest, resp.Header.Revision) // fails if another call has seen a change
	return resp, nil
}

// call posts a request to one endpoint after the other, until one responds or ctx is done. It calls
// each with every response, and leaves an endpoint that sends none within timeout.
func (c *Client) call(ctx context.Context, timeout time.Duration, path string, req request, each func(response)) error {
	for {
		n := c.endpoint.Load()
		tryCtx, cancel := context.WithCancelCause(ctx)
		timer := time.AfterFunc(timeout, func() { cancel(errTimeout) })
		err := c.try(tryCtx, n, path, req, func(r response) {
			each(r)
			timer.Reset(timeout)
		})
		timer.Stop()
		cancel(nil)
		if ctx.Err() != nil || !c.failed(n, err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryPause):
		}
	}
}

// failed reports whether err is a failure of endpoint n, rather than a response to the request. If
// so, it makes the next endpoint the one in use, unless another call has done that.
func (c *Client) failed(n int64, err error) bool {
	e, ok := errors.AsType[*Error](err)
	final := errors.Is(err, ErrCompacted) || errors.Is(err, ErrCluster) ||
		ok && e.Status < 500 && e.Status != http.StatusNotFound && e.Code != 0 && e.Code != canceled
	if err == nil {
		c.failing.Store(false)
	}
	if err == nil || final {
		return false
	}
	if c.endpoint.CompareAndSwap(n, n+1) && !c.failing.Swap(true) {
		c.cfg.Warn("etcd endpoint failed", "error", err)
	}
	return true
}

// try posts a request to endpoint n. If etcd rejects the token, it logs in and posts the request
// again. Code 3 also has other causes, for which the login is harmless.
func (c *Client) try(ctx context.Context, n int64, path string, req request, each func(response)) error {
	url := c.cfg.URLs[n%int64(len(c.cfg.URLs))]
	token := c.token.Load().(string)
	err := c.post(ctx, url+path, token, req, each)
	e, ok := errors.AsType[*Error](err)
	if ok && c.cfg.User != "" && (e.Code == invalidArgument || e.Code == unauthenticated) {
		if err = c.login(ctx, url, token); err == nil {
			err = c.post(ctx, url+path, c.token.Load().(string), req, each)
		}
	}
	if err != nil {
		err = fmt.Errorf("etcd at %s: %w", url, cmp.Or(context.Cause(ctx), err))
	}
	return err
}

// login gets a new token, unless another call has replaced the old one. Concurrent logins wait for
// each other, so each has at most tryTimeout.
func (c *Client) login(ctx context.Context, url, old string) error {
	c.loggingIn.Lock()
	defer c.loggingIn.Unlock()
	if c.token.Load() != old {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	req := request{Name: c.cfg.User, Password: c.cfg.Password()}
	err := c.post(ctx, url+"/v3/auth/authenticate", "", req, func(r response) { c.token.Store(r.Token) })
	if e, ok := errors.AsType[*Error](err); ok && e.Code == failedPrecondition { // authentication is disabled
		c.token.Store("")
		return nil
	}
	return err
}

// post posts a request, and calls each with every response. Only a watch has more than one. It has
// no last one, so its end is an error.
func (c *Client) post(ctx context.Context, url, token string, req request, each func(response)) error {
	body, _ := json.Marshal(req)                                                         // can't fail
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body)) // fails for an invalid URL
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Grpc-Metadata-Hasleader", "true") // a member without a leader returns an error instead of waiting
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	resp, err := c.transport.RoundTrip(r) // unlike http.Client, it follows no redirect
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	if resp.StatusCode != http.StatusOK {
		e := &Error{Status: resp.StatusCode}
		if d.Decode(e); e.Code == outOfRange { // a proxy's response may not be JSON
			return ErrCompacted
		}
		return e
	}
	for n := 0; ; n++ {
		r, err := c.decode(d)
		if err == io.EOF && n > 0 && req.Create == nil {
			return nil
		}
		if err != nil {
			return err
		}
		each(r)
	}
}

// decode decodes the next response of a body.
func (c *Client) decode(d *json.Decoder) (response, error) {
	var line struct {
		response
		Result *response // of a watch
		Error  struct{ Message string }
	}
	if err := d.Decode(&line); err != nil {
		return response{}, err
	}
	resp := *cmp.Or(line.Result, &line.response)
	id := resp.Header.ClusterID
	switch {
	case line.Error.Message != "":
		return response{}, errors.New(line.Error.Message)
	case id == "":
		return response{}, errors.New("not a response of etcd")
	case !c.cluster.CompareAndSwap(nil, id) && c.cluster.Load() != id:
		return response{}, ErrCluster
	case resp.CompactRevision > 0:
		return response{}, ErrCompacted
	case resp.Canceled && resp.Created: // lacks authentication or a permission
		return response{}, &Error{http.StatusUnauthorized, unauthenticated, resp.CancelReason}
	case resp.Canceled:
		return response{}, errors.New("watch canceled: " + resp.CancelReason)
	}
	return resp, nil
}
