//! Programs that may call the API, by their OAuth client id.

use super::{Page, PageRequest, Store, StoreError, on_engine};
use crate::types::{Role, ServiceClientId, TenantId, Timestamp};

/// A program, fixed to one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceClient {
    /// The public name here.
    pub id: ServiceClientId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The tenant's name.
    pub tenant_name: String,
    /// The OAuth client id at the provider.
    pub client_id: String,
    /// The name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// A registration to be made.
#[derive(Debug, Clone)]
pub struct NewServiceClient {
    /// The public name here.
    pub id: ServiceClientId,
    /// The OAuth client id at the provider.
    pub client_id: String,
    /// The name.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Store {
    /// Registers a program.
    ///
    /// # Errors
    /// `Conflict` when the client id is registered, here or in another tenant, or the tenant has
    /// `max` programs.
    pub async fn create_service_client(
        &self,
        tenant: &TenantId,
        client: NewServiceClient,
        max: u32,
        now: Timestamp,
    ) -> Result<ServiceClient, StoreError> {
        let tenant = tenant.clone();
        on_engine!(
            self,
            write,
            service_clients::create(&tenant, &client, max, now)
        )
    }

    /// A tenant's programs, oldest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_service_clients(
        &self,
        tenant: &TenantId,
        page: PageRequest,
    ) -> Result<Page<ServiceClient>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, service_clients::list(&tenant, &page))
    }

    /// One of a tenant's programs.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_service_client(
        &self,
        tenant: &TenantId,
        id: &ServiceClientId,
    ) -> Result<Option<ServiceClient>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, read, service_clients::find(&tenant, &id))
    }

    /// The program with an OAuth client id, unless the token's subject is a person (`issuer`,
    /// `subject`): a person's access token is no program's.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_service_client_by_client_id(
        &self,
        client_id: &str,
        issuer: &str,
        subject: &str,
    ) -> Result<Option<ServiceClient>, StoreError> {
        let (client_id, issuer, subject) =
            (client_id.to_owned(), issuer.to_owned(), subject.to_owned());
        on_engine!(
            self,
            read,
            service_clients::find_by_client_id(&client_id, &issuer, &subject)
        )
    }

    /// Changes a program's name or role, on every process.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn update_service_client(
        &self,
        tenant: &TenantId,
        id: &ServiceClientId,
        (name, role): (Option<String>, Option<Role>),
        now: Timestamp,
    ) -> Result<Option<ServiceClient>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(
            self,
            write,
            service_clients::update(&tenant, &id, (name.as_deref(), role), now)
        )
    }

    /// Ends a program's registration, on every process; tells whether there was one.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_service_client(
        &self,
        tenant: &TenantId,
        id: &ServiceClientId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, write, service_clients::delete(&tenant, &id, now))
    }

    /// Ends the registration of an OAuth client id in whatever tenant has it, on every process, and
    /// writes that down there: for whoever runs the installation, not for the API. `None` when no
    /// tenant has it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn take_client_id(
        &self,
        client_id: &str,
        now: Timestamp,
    ) -> Result<Option<ServiceClient>, StoreError> {
        let client_id = client_id.to_owned();
        on_engine!(self, write, service_clients::take(&client_id, now))
    }
}
