package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// Identity is what a device keeps. It gets it once, in exchange for a pairing code.
type Identity struct {
	DeviceID  string `json:"device_id"`
	Token     string `json:"token"`
	TunnelURL string `json:"tunnel_url"`
}

func pair(cloud, code string) (id Identity, err error) {
	body, _ := json.Marshal(map[string]any{"code": code, "device": map[string]string{"name": "go device"}})
	answer, err := http.Post(cloud+"/api/pairing/exchange", "application/json", bytes.NewReader(body))
	if err != nil {
		return id, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return id, errors.New("pairing: " + answer.Status)
	}
	err = json.NewDecoder(answer.Body).Decode(&id)
	return id, err
}

// keep holds one tunnel after the other.
func keep(id Identity, serve func(tunnel io.ReadWriteCloser) error) {
	for failures := 0; ; {
		began := time.Now()
		tunnel, wait, err := connect(id)
		if err == nil {
			err = serve(tunnel)
			if websocket.IsCloseError(err, 4401) {
				wait = time.Hour // revoked
			} else if time.Since(began) > time.Minute {
				failures = 0
			}
		}
		wait += time.Duration(rand.Int63n(int64(500 * time.Millisecond << failures)))
		if failures < 5 {
			failures++
		}
		log.Printf("no tunnel for %s: %v", wait, err)
		time.Sleep(wait)
	}
}

// connect opens a tunnel, or says how long to wait at least.
func connect(id Identity) (io.ReadWriteCloser, time.Duration, error) {
	header := http.Header{"Authorization": {"Bearer " + id.Token}, "Edgecloud-Agent": {"go-device/1"}}
	ws, answer, err := websocket.DefaultDialer.Dial(id.TunnelURL+"/tunnel", header)
	if err == nil {
		return &stream{ws, websocket.JoinMessages(ws, "")}, 0, nil
	}
	if answer == nil {
		return nil, 0, err
	}
	if answer.StatusCode == http.StatusUnauthorized {
		return nil, time.Hour, err // removed, or its token was replaced
	}
	seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
	return nil, time.Duration(seconds) * time.Second, err
}

// stream makes a byte stream of binary messages, whose boundaries mean nothing.
type stream struct {
	*websocket.Conn
	io.Reader
}

func (s *stream) Write(p []byte) (int, error) {
	return len(p), s.WriteMessage(websocket.BinaryMessage, p)
}

// serve answers the cloud's requests, each in a stream, until the tunnel ends.
func serve(tunnel io.ReadWriteCloser, config *yamux.Config, server *http.Server) error {
	session, err := yamux.Server(tunnel, config)
	if err != nil {
		return err
	}
	defer session.Close()
	return server.Serve(session)
}
