package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"sync"
	"time"
)

const cookieName = "session"

type login struct {
	user, tenant string
	expires      time.Time
}

// logins is the table of who is signed in, in memory.
type logins struct {
	key []byte

	mutex   sync.RWMutex
	known   map[[32]byte]login
	tenants map[string]string
}

func newLogins() *logins {
	return &logins{key: random(32), known: map[[32]byte]login{}, tenants: map[string]string{}}
}

// add signs somebody in and returns the cookie.
func (l *logins) add(user, tenant string) string {
	secret := base64.RawURLEncoding.EncodeToString(random(32))
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.known[sha256.Sum256([]byte(secret))] = login{user, tenant, time.Now().Add(12 * time.Hour)}
	return cookieName + "=" + secret + "." + l.sign(secret)
}

// own enters whom a device belongs to.
func (l *logins) own(device, tenant string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.tenants[device] = tenant
}

// mayUse says whether a cookie is good and its login's tenant has the device.
func (l *logins) mayUse(cookie, device string) bool {
	secret, signature, found := strings.Cut(cookie, ".")
	if !found || !hmac.Equal([]byte(signature), []byte(l.sign(secret))) {
		return false
	}
	l.mutex.RLock()
	defer l.mutex.RUnlock()
	login, known := l.known[sha256.Sum256([]byte(secret))]
	return known && time.Now().Before(login.expires) && l.tenants[device] == login.tenant
}

func (l *logins) sign(secret string) string {
	mac := hmac.New(sha256.New, l.key)
	mac.Write([]byte(secret))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func random(count int) []byte {
	bytes := make([]byte, count)
	// It never fails (crypto/rand, since Go 1.24).
	_, _ = rand.Read(bytes)
	return bytes
}
