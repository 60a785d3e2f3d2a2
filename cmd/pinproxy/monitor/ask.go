package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	answerWait = 10 * time.Second // for the beginning of an answer, which comes at once
	maxAnswer  = 256 << 20        // bytes; a flow takes some 300
)

// ask asks for a resource on the control socket at path, and decodes the answer.
func ask(ctx context.Context, path, resource string, query url.Values, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait+writeTime)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: answerWait,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pinproxy"+resource+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body := io.LimitReader(response.Body, maxAnswer)
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(body, 1<<10))
		return fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(said)))
	}
	if err := json.NewDecoder(body).Decode(answer); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}
